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
    best: int | None = None,
    validation: Mapping[str, str] | None = None,
) -> None:
    """Training and validation loss against steps, one colour a seed, and further validation metrics beside them.

    Axes span at least a tenth of the loss, or of the range of a metric, so that noise stays small.

    Args:
        history: the records of a run.
        seeds: of the run.
        path: of the picture.
        unit: of the loss.
        best: step of the best checkpoint, which is marked.
        validation: name of a metric in the records, a share -> label of its panel.
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
        name = {} if i else {"label": "training"}
        axes[0].plot([r["step"] for r in train], losses, **colour, **name, alpha=0.4, linewidth=1)
        for axis, metric in zip(axes, ["val_loss", *panels], strict=True):
            values = [record[metric][i] for record in evals]
            axis.plot(steps, values, **colour, **marks, label=f"validation, seed {seed}")
    for axis, label in zip(axes, [f"loss ({unit})", *panels.values()], strict=True):
        axis.set(xlabel="step", ylabel=label)
        _widen(axis, None if axis is axes[0] else (0.0, 1.0))
        if best is not None:
            axis.axvline(
                best, color="grey", linestyle=":", linewidth=1, label=f"best checkpoint, step {best}"
            )
        axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _widen(axis: Any, bounds: tuple[float, float] | None) -> None:
    """Makes the range of an axis at least a tenth of its largest value, or of `bounds`, which it does not leave."""
    low, high = axis.get_ylim()
    least = 0.1 * (abs(high) if bounds is None else bounds[1] - bounds[0])
    more = max(least - (high - low), 0) / 2
    low, high = low - more, high + more
    if bounds is not None:
        margin = 0.02 * (bounds[1] - bounds[0])
        low, high = max(low, bounds[0] - margin), min(high, bounds[1] + margin)
    axis.set_ylim(low, high)


def confusion(
    counts: np.ndarray,
    classes: Sequence[str],
    path: Path,
    *,
    title: str,
    columns: Sequence[str] | None = None,
) -> None:
    """Numbers of examples in cells, whose colour is their share of the row.

    Args:
        counts: (classes, classes), true classes as rows and predicted ones as columns; or (classes, columns).
        classes: their names.
        path: of the picture.
        title: above it.
        columns: names of columns that are not the predicted classes.
    """
    named = {"rows": list(map(_short, classes)), "columns": list(map(_short, columns or classes))}
    letters = max(map(len, named["rows"])), max(map(len, named["columns"]))
    cell = 0.55 if len(classes) <= 20 else 0.2
    size = (
        2.5 + 0.07 * letters[0] + cell * len(named["columns"]),
        1.2 + 0.06 * letters[1] + cell * len(classes),
    )
    figure, (axis,) = _figure(1, size=size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(classes) <= 20:
        _annotate(axis, counts, "{:,.0f}", white=shares > 0.6)
    _names(axis, named["rows"], named["columns"])
    axis.set(ylabel="label" if columns else "true", xlabel="" if columns else "predicted", title=title)
    figure.colorbar(image, ax=axis, label="share of the row", shrink=0.8)
    _save(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _names(axis: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, columns)) > 3 else {}
    axis.set_xticks(range(len(columns)), columns, **slanted)
    axis.set_yticks(range(len(rows)), rows)


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
    _names(axis, rows, columns)
    axis.set(ylabel=axes[0], xlabel=axes[1], title=title)
    figure.colorbar(image, ax=axis)
    _save(figure, path)


def learning_curves(
    curves: Mapping[str, Mapping[int, Sequence[float]]], path: Path, *, title: str, ylabel: str
) -> None:
    """One line for each name: the mean at each step, with the range of the values shaded; bars for a single step."""
    if all(len(points) == 1 for points in curves.values()):
        _bars({name: next(iter(points.values())) for name, points in curves.items()}, path, title, ylabel)
        return
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


def _bars(values: Mapping[str, Sequence[float]], path: Path, title: str, label: str) -> None:
    """The mean of each name, with the range of its values, from 0 on."""
    figure, (axis,) = _figure(1, size=(8, 1.2 + 0.35 * len(values)))
    means = [sum(v) / len(v) for v in values.values()]
    around = zip(means, values.values(), strict=True)
    errors = np.array([(mean - min(v), max(v) - mean) for mean, v in around]).T
    bars = axis.barh(list(values), means, xerr=errors, height=0.6, color="C0", alpha=0.6, ecolor="black")
    axis.bar_label(bars, fmt="%.1f", label_type="center", fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel=label, title=title)
    _save(figure, path)


def learned_parameters(params: Mapping[str, np.ndarray], out: Path) -> list[Path]:
    """Plots the gates and Morlet positions of a model that has them.

    Gates: alpha and tau per layer and head, white where they are 0 (gates.png). Morlet positions: frequency against
    width, with the line ωσ = 5 below which a wavelet is not admissible (morlet.png).

    Args:
        params: parameters of one seed by dotted path.
        out: folder for the pictures.

    Returns:
        The files written.
    """
    written = []
    gates = {which: _named(params, which) for which in ("alpha", "tau")}
    if gates["alpha"] and gates["tau"]:
        # Layers that were scanned share an array.
        tables = [np.concatenate([np.atleast_2d(value) for value in values]) for values in gates.values()]
        rows, columns = tables[0].shape
        figure, axes = _figure(2, size=(2 * max(3.5, 1.5 + 0.55 * columns), max(2.5, 1.2 + 0.35 * rows)))
        for axis, which, table in zip(axes, gates, tables, strict=True):
            most = max(float(abs(table).max()), 1e-6)
            image = axis.imshow(table, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most)
            _annotate(axis, table, "{:.2f}", white=abs(table) > 0.6 * most)
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
