"""Table of compile times beside softmax."""

from collections.abc import Mapping
from typing import Any

from benchmarks.report.markdown import grid, status


def section(document: Mapping[str, Any]) -> str:
    """CPU seconds, and their ratio to softmax."""
    sizes = document["settings"]
    lines = {}
    for row in document["rows"]:
        name = f"`{row['mechanism']}`, {'causal' if row['causal'] else 'not causal'}"
        known = row["status"] == "ok"
        lines[name] = [f"{row['median_cpu_s']:.1f}", f"{row['ratio']:.1f}"] if known else [status(row), ""]
    where = ", ".join(f"{name} {version}" for name, version in document["provenance"]["versions"].items())
    return (
        f"T {sizes['length']:,}, D {sizes['features']}, {sizes['heads']} heads, median of {sizes['rounds']} rounds; "
        f"{where}.\n\n" + grid("mechanism", ["CPU seconds", "of softmax"], lines)
    )
