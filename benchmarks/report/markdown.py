"""Markdown pieces shared by the tables of all results."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure.results import Row

INTERRUPTED = "**This run was interrupted; the table shows what it had measured.**"


def replace_between_markers(path: pathlib.Path, start: str, end: str, text: str) -> bool:
    """Puts `text` between the first `start` of a file and the next `end`; False if it has none."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    pattern = re.compile(f"({re.escape(start)}\n).*?({re.escape(end)})", re.DOTALL)
    new, count = pattern.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", old, count=1)
    if count:
        path.write_text(new, encoding="utf-8")
    return count > 0


def machine(document: Mapping[str, Any]) -> str:
    """The hardware of a result."""
    where = document["provenance"]
    return f"{where['cpu']}, {where['cores']} cores" if where["platform"] == "cpu" else where["device"]


def versions(document: Mapping[str, Any]) -> str:
    """Versions, commit and date of a result."""
    where = document["provenance"]
    found = where["versions"]
    torch = f", torch {found['torch']}" if "torch" in found else ""
    commit, date = where["commit"][:10], where["date"][:10]
    return f"jax {found['jax']}{torch}, Python {found['python']}, commit `{commit}`, {date}."


def command(document: Mapping[str, Any]) -> str:
    """The command that measured a result."""
    return f"Command: `{document['provenance']['command']}`"


def grid(corner: str, columns: Sequence[str], lines: Mapping[str, Sequence[str]]) -> str:
    """A table of right-aligned cells."""
    return "\n".join(
        [
            f"| {corner} | " + " | ".join(columns) + " |",
            "|---|" + "---:|" * len(columns),
            *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines.items()),
        ]
    )


def status(row: Row) -> str:
    """The reason for a missing figure."""
    return "" if row.get("status") == "ok" else row.get("status", "not measured").replace("_", " ")


def figures(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def two_digits(value: float | None) -> str:
    """Two significant digits; None is what was not finite."""
    if value is None:
        return "not finite"
    return f"{value:.1e}" if value >= 1e4 else f"{value:.0f}" if value >= 10 else f"{value:#.2g}"
