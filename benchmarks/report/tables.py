"""Markdown pieces that the tables of all results share."""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

TITLES = {"forward": "Forward", "backward": "Backward", "both": "Forward + backward"}

Row = Mapping[str, Any]


def replace_between_markers(path: pathlib.Path, start: str, end: str, text: str) -> bool:
    """Puts `text` between the first `start` of a file and the next `end`; False if it has none."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    pattern = re.compile(f"({re.escape(start)}\n).*?({re.escape(end)})", re.DOTALL)
    new, count = pattern.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", old, count=1)
    if count:
        path.write_text(new, encoding="utf-8")
    return count > 0


def machine(document: Mapping[str, Any]) -> str:
    """What it was measured on."""
    where = document["provenance"]
    return f"{where['cpu']}, {where['cores']} cores" if where["platform"] == "cpu" else where["device"]


def versions(document: Mapping[str, Any]) -> str:
    """With what and when it was measured."""
    where = document["provenance"]
    found = where["versions"]
    torch = f", torch {found['torch']}" if "torch" in found else ""
    commit, date = where["commit"][:10], where["date"][:10]
    return f"jax {found['jax']}{torch}, Python {found['python']}, commit `{commit}`, {date}."


def size(row: Row) -> str:
    """The sizes that all rows of a table share."""
    heads = f"N {row['heads']}" + (f", K {row['kv_heads']}" if row["kv_heads"] != row["heads"] else "")
    mask = "causal" if row["causal"] else "not causal"
    return f"B {row['batch']}, {heads}, H {row['head_dim']}, {row['dtype']}, {mask}"


def grid(corner: str, columns: Sequence[str], lines: Mapping[str, Sequence[str]]) -> str:
    """A table of right-aligned cells."""
    return "\n".join(
        [
            f"| {corner} | " + " | ".join(columns) + " |",
            "|---|" + "---:|" * len(columns),
            *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines.items()),
        ]
    )


def by_length(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """A line for each mechanism and implementation, a column for each length."""
    lengths = sorted({row["length"] for row in rows})
    found = {(name(row), row["length"]): row for row in rows}
    lines = {
        line: [cell(found[line, length]) if (line, length) in found else "" for length in lengths]
        for line in dict.fromkeys(name(row) for row in rows)
    }
    return grid("mechanism, implementation", [f"T {length}" for length in lengths], lines)


def name(row: Row) -> str:
    """What a row is about."""
    return f"`{row['mechanism']}`, {row['implementation']}"


def time_cell(row: Row) -> str:
    """Milliseconds."""
    return figures(row["median_s"] * 1e3) if "median_s" in row else status(row)


def memory_cell(row: Row) -> str:
    """MiB."""
    return figures(row["peak_bytes"] / 2**20) if "peak_bytes" in row else status(row)


def status(row: Row) -> str:
    """Why there is no figure."""
    return "" if row.get("status") == "ok" else row.get("status", "not measured").replace("_", " ")


def figures(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
