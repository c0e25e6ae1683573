"""The tables of a run that compares attention mechanisms."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.report import tables
from benchmarks.report.tables import TITLES, Row


def section(document: Mapping[str, Any], passes: Sequence[str], images: Sequence[str]) -> str:
    """Where it was measured, a table for each pass of time and of memory, and the plots."""
    parts = [
        f"### {tables.machine(document)}",
        f"{tables.versions(document)} Medians of {document['settings']['repeats']} rounds in which all cases take "
        "turns; in brackets the ratio to plain softmax attention of the same implementation, round by round.",
    ]
    if not document["complete"]:
        parts.append("**This run was interrupted; what it had measured is shown.**")
    rows = document["rows"]
    for head_dim in sorted({row["head_dim"] for row in rows}):
        parts += measured([row for row in rows if row["head_dim"] == head_dim], passes, _time_cell)
    return "\n\n".join([*parts, *images, f"Command: `{document['provenance']['command']}`"])


def measured(rows: Sequence[Row], passes: Sequence[str], time_cell: Callable[[Row], str]) -> list[str]:
    """Titled tables of what was measured of rows of one head width."""
    parts, size = [], tables.size(rows[0])
    for key, cell, title in (
        ("median_s", time_cell, "ms"),
        ("peak_bytes", tables.memory_cell, "measured peak memory beyond the inputs, MiB"),
    ):
        for direction in passes:
            chosen = [row for row in rows if row["direction"] == direction]
            if any(key in row for row in chosen):
                parts += [f"{TITLES[direction]}, {title} ({size}):", tables.by_length(chosen, cell)]
    return parts


def _time_cell(row: Row) -> str:
    ratio = row.get("ratios", {}).get(f"softmax/{row['implementation']}")
    against = "" if ratio is None or row["mechanism"] == "softmax" else f" ({ratio:.2f})"
    return tables.time_cell(row) + against
