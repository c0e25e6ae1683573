"""Tables of training steps compiled for pods."""

from collections.abc import Mapping
from typing import Any

from benchmarks.report.markdown import figures, grid, status

_GIB, _MIB = 2**30, 2**20
# Published for a v5e: FLOPs a second, and bytes a second from other chips (1,600 Gbit/s).
_FLOPS, _EXCHANGED = 197e12, 200e9


def section(document: Mapping[str, Any]) -> str:
    """Memory of a chip, time to compile, what a chip receives in a step, by kind, and how that scales with chips."""
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
            total = figures(_received(row) / _MIB)
            each = ", ".join(
                f"{count} {kind} {figures(size / _MIB)}" for kind, (count, size) in sorted(kinds.items())
            )
        lines[name] = [
            memory,
            f"{row['compile_cpu_s']:.0f}",
            total,
            each or status(row),
        ]
    versions = sorted({" ".join(x) for row in document["rows"] for x in row["versions"].items()})
    columns = ["GiB a chip", "compiled in CPU s", "received, MiB a chip and step", "by kind: times, MiB"]
    table = grid("job", columns, lines)
    return (
        f"{', '.join(versions)}; parameters are replicated but for `fsdp`.\n\n{table}\n\n{_scaling(document)}"
    )


def _received(row: Mapping[str, Any]) -> int:
    """Bytes that a chip receives in a step."""
    return sum(size for _, size in row["collectives"].values())


def _scaling(document: Mapping[str, Any]) -> str:
    """Weak scaling on paper: jobs that differ in chips, each with the same work a chip."""
    rows = [row for row in document["rows"] if row["collectives"] and "fsdp=16" in row["mesh"]]
    rows.sort(key=lambda row: (row["features"], row["attention"], row["layers"], row["devices"]))
    lines = {
        f"{row['devices']} chips, `{row['mesh']}`: {row['layers']} layers, d {row['features']}, "
        f"`{row['attention']}`": [
            figures(_received(row) / _MIB),
            figures(_received(row) / _EXCHANGED * 1e3),
            figures(row["flops"] / _FLOPS * 1e3),
        ]
        for row in rows
    }
    columns = ["received, MiB a chip and step", "ms of exchange at least", "ms of matrix products at least"]
    return grid("weak scaling, 8,192 tokens a chip", columns, lines)
