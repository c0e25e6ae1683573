"""Tables of programs compiled for accelerators."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure.results import Row
from benchmarks.report.markdown import grid, status, two_digits

DIRECTIONS = {"forward": "forward", "both": "forward + backward", "decode": "decode step"}


def section(document: Mapping[str, Any]) -> str:
    """A table for each target, at its smallest number of tokens; larger ones show how temporaries grow."""
    rows = document["rows"]
    return "\n\n".join(
        _target([row for row in rows if row["target"] == name]) for name in _distinct(rows, "target")
    )


def _target(rows: Sequence[Row]) -> str:
    tokens = min(row["tokens"] for row in rows)
    rows = [row for row in rows if row["tokens"] == tokens]
    columns = [direction for direction in DIRECTIONS if direction in _distinct(rows, "direction")]
    lines: dict[str, list[str]] = {}
    for row in rows:
        name = f"`{row['kernel']}`, {row['implementation']}, {'causal' if row['causal'] else 'not causal'}"
        lines.setdefault(name, [""] * len(columns))[columns.index(row["direction"])] = _cell(row)
    versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
    return (
        f"`{rows[0]['target']}`, T {tokens:,}: HBM bytes over the ideal (every operand and result once), "
        f"and temporaries. {versions}.\n\n" + grid("kernel", [DIRECTIONS[name] for name in columns], lines)
    )


def _cell(row: Row) -> str:
    if row["status"] != "ok":
        return status(row)
    moved = f"{two_digits(row['bytes'] / row['ideal_bytes'])} ×" if row["bytes"] else "bytes unknown"
    return f"{moved}, {row['temp_bytes'] / 2**20:.0f} MiB"


def _distinct(rows: Sequence[Row], name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))
