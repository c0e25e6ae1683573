"""The table of training steps."""

from collections.abc import Mapping
from typing import Any

from benchmarks.report import tables


def section(document: Mapping[str, Any]) -> str:
    """Seconds a step, a line for each attention, with the ratio to softmax of the same rounds."""
    rows, settings = document["rows"], document["settings"]
    lengths = sorted({row["length"] for row in rows})
    found = {(row["attention"], row["length"]): row for row in rows}
    lines = {
        f"`{attention}`": [_cell(found.get((attention, length))) for length in lengths]
        for attention in dict.fromkeys(row["attention"] for row in rows)
    }
    parts = [
        tables.grid("attention", [f"T {length:,}" for length in lengths], lines),
        f"Seconds of a training step of the `{settings['task']}` task's published set-up, "
        f"{settings['batch']} sequences of full length; in brackets how many times faster than softmax. "
        f"Medians of {settings['repeats']} rounds in which all take turns. {tables.machine(document)}, "
        f"{tables.versions(document)} Command: `{document['provenance']['command']}`",
    ]
    if not document["complete"]:
        parts.append("**This run was interrupted; what it had measured is shown.**")
    return "\n\n".join(parts)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or "median_s" not in row:
        return "" if row is None else tables.status(row)
    ratio = row["ratios"].get("softmax")
    faster = "" if ratio is None or row["attention"] == "softmax" else f" ({tables.figures(1 / ratio)}×)"
    return f"{row['median_s']:.3g}{faster}"
