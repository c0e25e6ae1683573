"""Pictures of a run: loss curves and the parameters that mean something."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def loss_curve(history: Sequence[Mapping[str, Any]], seeds: Sequence[int], path: Path) -> None:
    """Training and validation loss against steps, one line a seed."""
    figure, axes = _figure(1)
    train = [record for record in history if record["kind"] == "train"]
    evals = [record for record in history if record["kind"] == "eval"]
    for i, seed in enumerate(seeds):
        colour = f"C{i % 10}"
        axes[0].plot(
            [r["step"] for r in train], [r["loss"][i] for r in train], color=colour, alpha=0.4, linewidth=1,
            label=f"train, seed {seed}",
        )  # fmt: skip
        axes[0].plot(
            [r["step"] for r in evals], [r["val_loss"][i] for r in evals], color=colour, marker="o", markersize=3,
            label=f"validation, seed {seed}",
        )  # fmt: skip
    axes[0].set(xlabel="step", ylabel="loss (nats per character)")
    axes[0].legend(frameon=False)
    _save(figure, path)


def classification_curves(history: Sequence[Mapping[str, Any]], seeds: Sequence[int], path: Path) -> None:
    """Training and validation loss, and validation accuracy, against steps, one line a seed."""
    figure, axes = _figure(2)
    train = [record for record in history if record["kind"] == "train"]
    evals = [record for record in history if record["kind"] == "eval"]
    marks: dict[str, Any] = {"marker": "o", "markersize": 3}
    steps = [r["step"] for r in evals]
    for i, seed in enumerate(seeds):
        colour: dict[str, Any] = {"color": f"C{i % 10}"}
        axes[0].plot(
            [r["step"] for r in train], [r["loss"][i] for r in train], **colour, alpha=0.4, linewidth=1,
            label=f"train, seed {seed}",
        )  # fmt: skip
        axes[0].plot(
            steps, [r["val_loss"][i] for r in evals], **colour, **marks, label=f"validation, seed {seed}"
        )
        axes[1].plot(steps, [r["val_accuracy"][i] for r in evals], **colour, **marks, label=f"seed {seed}")
    axes[0].set(xlabel="step", ylabel="loss (nats per example)")
    axes[1].set(xlabel="step", ylabel="validation accuracy")
    for axis in axes:
        axis.legend(frameon=False)
    _save(figure, path)


def confusion(counts: np.ndarray, classes: Sequence[str], path: Path, *, title: str) -> None:
    """A confusion matrix: true classes as rows, predicted ones as columns, numbers of examples in the cells."""
    figure, axes = _figure(1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes[0].imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes[0].text(column, row, f"{count:,.0f}", ha="center", va="center", fontsize=8, color=colour)
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
    from matplotlib.figure import Figure

    table = np.array(values, float)
    figure = Figure(figsize=(2.5 + 0.7 * len(columns), 2 + 0.5 * len(rows)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(table, aspect="auto", cmap="viridis")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for row, column in np.argwhere(np.isfinite(table)).tolist():
        value = float(table[row, column])
        colour = "white" if value < middle else "black"
        axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    axis.set(ylabel=axes[0], xlabel=axes[1], title=title)
    figure.colorbar(image, ax=axis)
    _save(figure, path)


def learning_curves(
    curves: Mapping[str, Mapping[int, Sequence[float]]], path: Path, *, title: str, ylabel: str
) -> None:
    """A line a name: means by step, and between the least and the most of them a shade."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axis = figure.subplots()
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
    """Draws what the attention has learned, where the model has such parameters.

    Gates: alpha and tau per layer and head (gates.png). Morlet positions: frequency against width, with the line
    omega sigma = 5 below which a wavelet is not admissible (morlet.png).

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
            table = np.stack([np.atleast_1d(value) for value in values])
            image = axis.imshow(table, aspect="auto", cmap="coolwarm")
            for (row, column), value in np.ndenumerate(table):
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8)
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


def _figure(columns: int) -> tuple[Any, Any]:
    # The object interface needs no display and leaves no global state behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, 3.8), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path
