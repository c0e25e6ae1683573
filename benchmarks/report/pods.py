"""Table of training steps compiled for pods."""

from collections.abc import Mapping
from typing import Any

from benchmarks.report.markdown import figures, grid, status

_GIB, _MIB = 2**30, 2**20


def section(document: Mapping[str, Any]) -> str:
    """Memory of a chip, time to compile, and what a chip receives in a step, by kind."""
    lines = {}
    for row in document["rows"]:
        name = (
            f"{row['layers']} layers, d {row['features']}, `{row['attention']}`, T {row['length']:,}, batch "
            f"{row['batch']}; {row['target']}, `{row['mesh']}`"
        )
        memory = "does not fit"
        if row["memory_bytes"] is not None:
            memory = f"{figures(row['memory_bytes'] / _GIB)} of {row['chip_bytes'] // _GIB}"
        kinds = row["collectives"]
        total, each = "not counted", row["message"][:80]
        if kinds is not None:
            total = f"{figures(sum(size for _, size in kinds.values()) / _MIB)}"
            each = ", ".join(
                f"{count} {kind} {figures(size / _MIB)}" for kind, (count, size) in sorted(kinds.items())
            )
        lines[name] = [
            memory,
            f"{row['compile_s']:.0f}, {row['compile_cpu_s']:.0f}",
            total,
            each or status(row),
        ]
    versions = sorted({" ".join(x) for row in document["rows"] for x in row["versions"].items()})
    columns = ["GiB a chip", "compiled in s, CPU s", "received, MiB a chip and step", "by kind: times, MiB"]
    return f"{', '.join(versions)}; parameters are replicated but for `fsdp`.\n\n" + grid(
        "job", columns, lines
    )
