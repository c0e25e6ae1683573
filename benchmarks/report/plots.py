"""Plots of results: time and memory over the number of tokens, and a heatmap of errors."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.report.features import table_features
from benchmarks.report.markdown import two_digits
from benchmarks.suites.cases import TITLES


def curves(document: Mapping[str, Any], folder: pathlib.Path, name: str) -> list[str]:
    """Draws time and memory over T, a panel for each head width and pass; returns the file names."""
    plt = _pyplot()
    drawn = []
    for quantity, key, factor, unit in (
        ("time", "median_s", 1e3, "median time, ms"),
        ("memory", "peak_bytes", 2**-20, "peak memory, MiB"),
    ):
        rows = [row for row in document["rows"] if row.get("status") == "ok" and row.get(key)]
        present = {(row["head_dim"], row["direction"]) for row in rows}
        panels = [(h, d) for h in sorted({h for h, _ in present}) for d in TITLES if (h, d) in present]
        if not panels:
            continue
        figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.2), squeeze=False)
        for axis, panel in zip(axes[0], panels, strict=True):
            lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
            for row in rows:
                if (row["head_dim"], row["direction"]) == panel:
                    points = lines.setdefault((row["mechanism"], row["implementation"]), [])
                    points.append((row["length"], row[key] * factor))
            for line, points in lines.items():
                style = "--" if line[0] == "softmax" else "-"
                label = ", ".join(line)
                axis.plot(*zip(*sorted(points), strict=True), style, marker="o", markersize=3, label=label)
            title = f"{TITLES[panel[1]]}, H {panel[0]}"
            axis.set(xscale="log", yscale="log", xlabel="T, tokens", ylabel=unit, title=title)
            lengths = sorted({length for points in lines.values() for length, _ in points})
            axis.set_xticks(lengths, [str(length) for length in lengths])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0][-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
        drawn.append(_save(figure, folder, f"{name}_{quantity}.png"))
    return drawn


def heatmap(document: Mapping[str, Any], folder: pathlib.Path, name: str) -> list[str]:
    """Draws the median error of all pairs at one M, on a logarithmic scale; returns the file name."""
    plt = _pyplot()
    from matplotlib.colors import LogNorm

    rows, settings = document["rows"], document["settings"]
    num_features = table_features(rows)
    rows = [row for row in rows if row["num_features"] == num_features]
    components, weights = (list(dict.fromkeys(row[key] for row in rows)) for key in ("component", "weights"))
    errors = np.full((len(components), len(weights)), np.nan)
    for row in rows:
        median = row["error"]["median"]
        cell = components.index(row["component"]), weights.index(row["weights"])
        errors[cell] = np.inf if median is None else median
    finite = errors[np.isfinite(errors)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.1, 1.0)
    # From 1 on an error is larger than the output itself: how much larger is of no interest.
    top = max(min(high, 1.0), 2 * low)
    figure, axis = plt.subplots(figsize=(2.8 + 0.62 * len(weights), 1.9 + 0.42 * len(components)))
    norm = LogNorm(low, top, clip=True)
    image = axis.imshow(np.minimum(errors, 1e9), norm=norm, cmap="viridis_r", aspect="auto")
    for (i, j), error in np.ndenumerate(errors):
        if not np.isnan(error):
            dark = np.log(min(error, top) / low) > 0.55 * np.log(top / low)
            text = "∞" if np.isinf(error) else two_digits(error)
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    axis.set_xticks(range(len(weights)), weights, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(components)), components, fontsize=8)
    axis.set_title(
        f"relative error of the output\nM {num_features}, H {settings['head_dim']}, T {settings['length']}; "
        f"plain mean of v: {two_digits(document['plain_mean']['mean'])}",
        fontsize=9,
    )
    bar = figure.colorbar(image, extend="max" if high > top else "neither", pad=0.02, format="%g")
    bar.ax.yaxis.set_minor_formatter("{x:g}")
    bar.ax.tick_params(which="both", labelsize=7)
    return [_save(figure, folder, f"{name}.png")]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, folder: pathlib.Path, name: str) -> str:
    figure.tight_layout()
    figure.savefig(folder / name, dpi=110)
    _pyplot().close(figure)
    return name
