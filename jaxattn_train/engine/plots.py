"""Plots of a run: curves, confusion matrices, heatmaps, and learned gates and positions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def training_curves(
    history: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    path: Path,
    *,
    unit: str,
    validation: Mapping[str, str] | None = None,
) -> None:
    """Training and validation loss against steps, one line a seed, and further validation metrics beside them.

    Args:
        history: the records of a run.
        seeds: of the run.
        path: of the picture.
        unit: of the loss.
        validation: name of a metric in the records -> label of its panel.
    """
    panels = validation or {}
    figure, axes = _figure(1 + len(panels))
    train = [record for record in history if record["kind"] == "train"]
    evals = [record for record in history if record["kind"] == "eval"]
    steps = [record["step"] for record in evals]
    marks: dict[str, Any] = {"marker": "o", "markersize": 3}
    for i, seed in enumerate(seeds):
        colour: dict[str, Any] = {"color": f"C{i % 10}"}
        losses = [record["loss"][i] for record in train]
        name = f"train, seed {seed}"
        axes[0].plot([r["step"] for r in train], losses, **colour, alpha=0.4, linewidth=1, label=name)
        losses = [record["val_loss"][i] for record in evals]
        axes[0].plot(steps, losses, **colour, **marks, label=f"validation, seed {seed}")
        for axis, metric in zip(axes[1:], panels, strict=True):
            axis.plot(steps, [record[metric][i] for record in evals], **colour, **marks, label=f"seed {seed}")
    for axis, label in zip(axes, [f"loss ({unit})", *panels.values()], strict=True):
        axis.set(xlabel="step", ylabel=label)
        axis.legend(frameon=False)
    _save(figure, path)


def confusion(counts: np.ndarray, classes: Sequence[str], path: Path, *, title: str) -> None:
    """A confusion matrix: true classes as rows, predicted ones as columns, numbers of examples in the cells."""
    figure, axes = _figure(1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes[0].imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(classes) <= 20:
        _annotate(axes[0], counts, "{:,.0f}", white=shares > 0.6)
    axes[0].set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 4 else 0)
    axes[0].set_yticks(range(len(classes)), classes)
    axes[0].set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(image, ax=axes[0], label="share of the true class")
    _save(figure, path)


def heatmap(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    path: Path,
    *,
    title: str,
    axes: tuple[str, str],
) -> None:
    """Numbers by two names as colours, each written in its cell; None leaves a cell empty."""
    table = np.array(values, float)
    figure, (axis,) = _figure(1, size=(2.5 + 0.7 * len(columns), 2 + 0.5 * len(rows)))
    image = axis.imshow(table, aspect="auto", cmap="viridis")
    _annotate(axis, table, "{:.1f}", white=table < (np.nanmin(table) + np.nanmax(table)) / 2)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    axis.set(ylabel=axes[0], xlabel=axes[1], title=title)
    figure.colorbar(image, ax=axis)
    _save(figure, path)


def learning_curves(
    curves: Mapping[str, Mapping[int, Sequence[float]]], path: Path, *, title: str, ylabel: str
) -> None:
    """One line for each name: the mean at each step, with the range of the values shaded."""
    figure, (axis,) = _figure(1, size=(8, 3.8))
    for i, (name, points) in enumerate(curves.items()):
        steps, colour = sorted(points), f"C{i % 10}"
        values = [points[step] for step in steps]
        axis.plot(
            steps, [sum(v) / len(v) for v in values], color=colour, marker="o", markersize=3, label=name
        )
        axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15)
    axis.set(xlabel="step", ylabel=ylabel, title=title)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    _save(figure, path)


def learned_parameters(params: Mapping[str, np.ndarray], out: Path) -> list[Path]:
    """Plots the gates and Morlet positions of a model that has them.

    Gates: alpha and tau per layer and head (gates.png). Morlet positions: frequency against width, with the line
    ωσ = 5 below which a wavelet is not admissible (morlet.png).

    Args:
        params: parameters of one seed by dotted path.
        out: folder for the pictures.

    Returns:
        The files written.
    """
    written = []
    gates = {which: _named(params, which) for which in ("alpha", "tau")}
    if gates["alpha"] and gates["tau"]:
        figure, axes = _figure(2)
        for axis, (which, values) in zip(axes, gates.items(), strict=True):
            table = np.concatenate(
                [np.atleast_2d(value) for value in values]
            )  # scanned layers share an array
            image = axis.imshow(table, aspect="auto", cmap="coolwarm")
            _annotate(axis, table, "{:.2f}", white=np.zeros(table.shape, bool))
            axis.set(title=f"gate {which}", xlabel="head", ylabel="layer")
            axis.set_xticks(range(table.shape[1]))
            axis.set_yticks(range(table.shape[0]))
            figure.colorbar(image, ax=axis)
        written.append(_save(figure, out / "gates.png"))
    omegas, sigmas = _named(params, "log_omega"), _named(params, "log_sigma")
    if omegas and sigmas:
        omega, sigma = np.exp(omegas[0]), np.exp(sigmas[0])
        figure, axes = _figure(1)
        axes[0].scatter(omega, sigma, s=14, label="learned pairs")
        line = np.geomspace(omega.min(), omega.max(), 50)
        axes[0].plot(line, 5 / line, color="grey", linestyle="--", linewidth=1, label="ωσ = 5")
        axes[0].set(xlabel="frequency ω (radians per character)", ylabel="width σ (characters)")
        axes[0].set(xscale="log", yscale="log")
        axes[0].legend(frameon=False)
        written.append(_save(figure, out / "morlet.png"))
    return written


def _named(params: Mapping[str, np.ndarray], last: str) -> list[np.ndarray]:
    def order(name: str) -> list[Any]:
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]

    names = [name for name in params if name.rpartition(".")[2] == last]
    return [np.asarray(params[name], np.float32) for name in sorted(names, key=order)]


def _annotate(axis: Any, values: np.ndarray, text: str, *, white: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if white[row, column] else "black"
            axis.text(column, row, text.format(value), ha="center", va="center", fontsize=8, color=colour)


def _figure(columns: int, *, size: tuple[float, float] | None = None) -> tuple[Any, Any]:
    # The object interface needs no display and has no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (5.5 * columns, 3.8), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path
