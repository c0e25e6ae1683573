"""Plots of time and memory over the number of tokens."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.report.tables import TITLES, Row
from benchmarks.suites.cases import PASSES


def plot(document: Mapping[str, Any], folder: pathlib.Path, name: str) -> list[str]:
    """Draws time and memory over T for forward + backward (or what there is); returns the file names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    rows = [row for row in document["rows"] if row.get("status") == "ok"]
    for quantity, value, unit in (
        ("time", lambda row: row["median_s"] * 1e3, "median time, ms"),
        ("memory", lambda row: row["peak_bytes"] / 2**20, "peak memory, MiB"),
    ):
        key = "median_s" if quantity == "time" else "peak_bytes"
        panels = _panels(row for row in rows if row.get(key))
        if not panels:
            continue
        figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.2), squeeze=False)
        for axis, (title, members) in zip(axes[0], panels.items(), strict=True):
            for line in dict.fromkeys((row["mechanism"], row["implementation"]) for row in members):
                points = sorted(
                    (row["length"], value(row))
                    for row in members
                    if (row["mechanism"], row["implementation"]) == line
                )
                style = "--" if line[0] == "softmax" else "-"
                axis.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=", ".join(line))
            axis.set(xscale="log", yscale="log", xlabel="T, tokens", ylabel=unit, title=title)
            lengths = sorted({row["length"] for row in members})
            axis.set_xticks(lengths, [str(length) for length in lengths])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0][-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
        figure.tight_layout()
        drawn.append(f"{name}_{quantity}.png")
        figure.savefig(folder / drawn[-1], dpi=110)
        plt.close(figure)
    return drawn


def _panels(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows by head width and pass, in the order of the passes."""
    rows = list(rows)
    panels: dict[str, list[Row]] = {}
    for head_dim in sorted({row["head_dim"] for row in rows}):
        for direction in PASSES:
            members = [row for row in rows if row["head_dim"] == head_dim and row["direction"] == direction]
            if members:
                panels[f"{TITLES[direction]}, H {head_dim}"] = members
    return panels
