"""The report of a classification run: test scores of the best checkpoint, plots, predictions, summary.json."""

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxattn_train.cli.options import TaskConfig
from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.engine import plots, resume
from jaxattn_train.engine.functional import Params
from jaxattn_train.engine.metrics import clock, mean, mean_and_spread
from jaxattn_train.engine.provenance import over_seeds, peak_memory, provenance
from jaxattn_train.engine.run import Run
from jaxattn_train.tasks.shared.losses import probabilities
from jaxattn_train.tasks.shared.options import LossKind
from jaxattn_train.tasks.shared.scores import confusion, predictions, scores

CELLS = ("true negative", "false positive", "false negative", "true positive")


@dataclasses.dataclass(frozen=True)
class Measured:
    """The predictions of the best checkpoint."""

    name: str
    """Of the part."""
    part: Sequences
    params: Params
    predicted: np.ndarray
    """(seeds, examples), or (seeds, examples, labels) of 0 and 1."""
    chances: np.ndarray
    """Probabilities (seeds, examples, classes)."""
    classes: Sequence[str]
    separator: str
    """Between several labels of an example."""

    def label(self, labels: np.ndarray) -> str:
        """The name of a class, or of all labels of an example."""
        if np.ndim(labels) == 0:
            return self.classes[int(labels)]
        return self.separator.join(c for c, there in zip(self.classes, labels, strict=True) if there)


def finish(
    config: TaskConfig,
    data: ClassificationData,
    run: Run,
    predict: Callable[[Params, str], np.ndarray],
    *,
    loss: LossKind,
    separator: str,
    more: Callable[[Run, Measured], None] | None,
    shapes: int,
    batches: int,
) -> dict[str, Any]:
    """Measures the best checkpoint on the test part (or on validation, where there is none), and writes the report.

    Args:
        config: of the run.
        data: the task.
        run: finished.
        predict: (parameters, name of a part) -> logits (seeds, examples, outputs).
        loss: which; see `losses.example_loss`.
        separator: between several labels of an example.
        more: adds to the report.
        shapes: how many batch shapes were compiled.
        batches: of an epoch.

    Returns:
        The content of summary.json.
    """
    out, say = run.out, run.progress.say
    best = run.store.best_step()
    assert best is not None, "the last step is always evaluated and saved"
    params = run.state.params if best == run.last else run.store.params(best, run.plan.target.params)
    name = "test" if data.test is not None else "validation"
    part = data.parts()[name]
    say(f"measuring the best checkpoint, of step {best}, on all {name} data")
    logits = predict(params, name)
    numbers = scores(loss, logits, part.labels)
    chances = probabilities(loss, logits)
    measured = Measured(name, part, params, predictions(loss, chances), chances, data.classes, separator)
    counts = confusion(loss, measured.predicted, part.labels, len(data.classes))
    evals = {record["step"]: record for record in run.log.history if record["kind"] == "eval"}
    rates = [record["tokens_per_second"] for record in run.log.history if record["kind"] == "train"]
    summary = {
        "config": dataclasses.asdict(config),
        "seeds": list(run.seeds),
        "steps": run.last,
        "batches_per_epoch": batches,
        "parameters": run.model.num_params(),
        "parameters_total": sum(shape.size for shape in run.model.shapes.values()),
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "examples": {name: len(part) for name, part in data.parts().items()},
            "notes": list(data.notes),
            "trees": data.lengths is not None,
        },
        "best_step": best,
        **{key: over_seeds(value) for key, value in evals[best].items() if key.startswith("val_")},
        "last_val_accuracy": over_seeds(evals[run.last]["val_accuracy"]),
        "evaluations": [
            {"step": step, **{key: mean(record[key]) for key in ("val_loss", "val_accuracy")}}
            for step, record in evals.items()
        ],
        "measured_on": name,
        **{key: over_seeds(values) for key, values in numbers.items()},
        "confusion": counts.tolist(),
        "compiled_shapes": shapes,
        "seconds": run.seconds,
        "seconds_per_step": (run.seconds - run.checking) / run.last,
        "tokens_per_second": float(np.median(rates)) if rates else None,
        "peak_memory": peak_memory(),
        **provenance(run.mesh),
    }
    if jax.process_index() == 0:
        panels = {"val_accuracy": "validation accuracy"}
        plots.training_curves(
            run.log.history, run.seeds, out / "curves.png", unit="nats per example", validation=panels
        )
        title = f"{name} part" + (f", sum of {len(run.seeds)} seeds" if len(run.seeds) > 1 else "")
        _plot_confusion(loss, counts.sum(axis=0), data.classes, out / "confusion.png", title)
        _write_predictions(out / "predictions.csv", data, measured, run.seeds)
    if more is not None:
        more(run, measured)
    if jax.process_index() == 0:
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    found = ", ".join(f"{key} {mean_and_spread(values)}" for key, values in numbers.items())
    say(
        f"done: {name} {found}; validation accuracy {mean_and_spread(evals[best]['val_accuracy'])} at step {best}; "
        f"{clock(run.seconds)}, {summary['seconds_per_step']:.3f} seconds a step"
    )
    say(f"files: {resume.listing(out)} in {out}")
    return summary


def _plot_confusion(
    loss: LossKind, counts: np.ndarray, classes: Sequence[str], path: Path, title: str
) -> None:
    if loss == "multilabel":
        plots.heatmap(counts.tolist(), classes, CELLS, path, title=title, axes=("label", "texts"))
    else:
        plots.confusion(counts, classes, path, title=title)


def _write_predictions(
    path: Path, data: ClassificationData, measured: Measured, seeds: Sequence[int]
) -> None:
    """One row an example: id, text where the data keep it, label, and prediction and probabilities of every seed."""
    labels, name = measured.part.labels, measured.name
    columns = [f"{x}_seed{seed}" for seed in seeds for x in ("prediction", *(f"p_{c}" for c in data.classes))]
    ids = data.ids.get(name) or range(len(labels))
    texts = getattr(data, "texts", {}).get(name)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(["text"] if texts else []), "label", *columns])
        for i, example in enumerate(ids):
            row = [example, *([texts[i]] if texts else []), measured.label(labels[i])]
            for predicted, chances in zip(measured.predicted, measured.chances, strict=True):
                row += [measured.label(predicted[i]), *(f"{p:.4f}" for p in chances[i])]
            writer.writerow(row)
