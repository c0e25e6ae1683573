"""Records of studies as JSON files and as tables in Markdown files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxattn_train.errors import UserError

END = "<!-- /results -->"


def publish(
    record: Mapping[str, Any], table: str, *, out: Path, tables: Sequence[Path], name: str, variants: int
) -> None:
    """Writes a record as JSON, prints its table, and replaces the table `name` in Markdown files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(record['rows'])} of {variants} variants in {out}\n\n{table}")
    for path in tables:
        renew(path, table, name=name)


def renew(path: Path, text: str, *, name: str) -> None:
    """Replaces the text between the markers of the table `name` in a Markdown file.

    Raises:
        UserError: the file has no markers.
    """
    start = f"<!-- results:{name} -->"
    old = path.read_text(encoding="utf-8")
    head, found, tail = old.partition(start)
    if not found or END not in tail:
        raise UserError(f"{path} has no lines {start} and {END} to put a table between.")
    path.write_text(f"{head}{start}\n{text}\n{END}{tail.partition(END)[2]}", encoding="utf-8")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """A Markdown table with a note below it."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join([*lines, "", note])


def cell(value: Mapping[str, Any] | None, *, factor: float = 1.0, digits: int = 3) -> str:
    """Mean ± standard deviation over seeds; a difference has a sign, None is an empty cell.

    Examples:
        >>> cell({"mean": 0.5, "spread": 0.01}), cell({"to": "x", "mean": 0.5, "spread": None}, digits=1), cell(None)
        ('0.500 ± 0.010', '+0.5', '')
    """
    if value is None:
        return ""
    sign = "+" if "to" in value else ""
    spread = "" if value["spread"] is None else f" ± {factor * value['spread']:.{digits}f}"
    return f"{factor * value['mean']:{sign}.{digits}f}{spread}"


def percent(value: Mapping[str, Any] | None) -> str:
    """A share over seeds in percent; see `cell`.

    Examples:
        >>> percent({"mean": 0.5, "spread": 0.01})
        '50.00 ± 1.00'
    """
    return cell(value, factor=100, digits=2)
