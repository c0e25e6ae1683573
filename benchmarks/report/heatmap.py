"""A picture of the errors of all pairs of component and weights."""

import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.report.accuracy_tables import digits, drawn_features


def heatmap(document: Mapping[str, Any], folder: pathlib.Path, name: str) -> str:
    """Draws the median error of all pairs at one M, on a logarithmic scale; returns the file name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.colors import LogNorm

    rows, settings = document["rows"], document["settings"]
    num_features = drawn_features(rows)
    chosen = [row for row in rows if row["num_features"] == num_features]
    components, weights = (
        list(dict.fromkeys(row[key] for row in chosen)) for key in ("component", "weights")
    )
    errors = np.full((len(components), len(weights)), np.nan)
    for row in chosen:
        median = row["error"]["median"]
        place = components.index(row["component"]), weights.index(row["weights"])
        errors[place] = np.inf if median is None else median
    finite = errors[np.isfinite(errors)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.1, 1.0)
    # From 1 on an error is larger than the output itself: how much larger is of no interest.
    top = max(min(high, 1.0), 2 * low)
    figure, axis = plt.subplots(figsize=(2.8 + 0.62 * len(weights), 1.9 + 0.42 * len(components)))
    image = axis.imshow(
        np.minimum(errors, 1e9), norm=LogNorm(low, top, clip=True), cmap="viridis_r", aspect="auto"
    )
    for (i, j), error in np.ndenumerate(errors):
        if not np.isnan(error):
            dark = np.log(min(error, top) / low) > 0.55 * np.log(top / low)
            text = "∞" if np.isinf(error) else digits(error)
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    axis.set_xticks(range(len(weights)), weights, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(components)), components, fontsize=8)
    axis.set_title(
        f"relative error of the output\nM {num_features}, H {settings['head_dim']}, T {settings['length']}; "
        f"plain mean of v: {digits(document['plain_mean']['mean'])}",
        fontsize=9,
    )
    bar = figure.colorbar(image, extend="max" if high > top else "neither", pad=0.02, format="%g")
    bar.ax.yaxis.set_minor_formatter("{x:g}")
    bar.ax.tick_params(which="both", labelsize=7)
    figure.tight_layout()
    drawn = f"{name}.png"
    figure.savefig(folder / drawn, dpi=110)
    plt.close(figure)
    return drawn
