"""The report of a classification run: test scores of the best checkpoint, plots, predictions, summary.json."""

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.engine import plots, resume
from jaxattn_train.engine.functional import Params
from jaxattn_train.engine.metrics import clock, mean, mean_and_spread
from jaxattn_train.engine.provenance import over_seeds, peak_memory
from jaxattn_train.engine.run import Run
from jaxattn_train.tasks.shared.losses import probabilities
from jaxattn_train.tasks.shared.options import LossKind
from jaxattn_train.tasks.shared.scores import NAMES, best_thresholds, confusion, listed, predictions, scores

EVALUATIONS = "evaluations"
"""Folder of a run for the reports of `evaluate`."""
CELLS = ("true negative", "false positive", "false negative", "true positive")


@dataclasses.dataclass(frozen=True)
class Measured:
    """The predictions of the best checkpoint."""

    name: str
    """Of the part."""
    part: Sequences
    predicted: np.ndarray
    """(seeds, examples), or (seeds, examples, labels) of 0 and 1."""
    chances: np.ndarray
    """Probabilities (seeds, examples, classes)."""
    classes: Sequence[str]
    separator: str
    """Between several labels of an example."""
    params: Params | None = None

    def label(self, labels: np.ndarray) -> str:
        """The name of a class, or of all labels of an example."""
        if np.ndim(labels) == 0:
            return self.classes[int(labels)]
        return self.separator.join(c for c, there in zip(self.classes, labels, strict=True) if there)


def finish(
    data: ClassificationData,
    run: Run,
    predict: Callable[[Params, str], np.ndarray],
    *,
    identity: Mapping[str, Any],
    loss: LossKind,
    separator: str,
    more: Callable[[Run, Measured], None] | None,
    shapes: int,
    batches: int,
) -> dict[str, Any]:
    """Measures the best checkpoint on the test part (or on validation, where there is none), and writes the report.

    Args:
        data: the task.
        run: finished.
        predict: (parameters, name of a part) -> logits (seeds, examples, outputs).
        identity: of settings and data, which the summary keeps.
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
    thresholds = None
    if loss == "multilabel":
        held = logits if name == "validation" else predict(params, "validation")
        thresholds = best_thresholds(probabilities(loss, held), data.validation.labels)
    numbers = scores(loss, logits, part.labels, thresholds)
    chances = probabilities(loss, logits)
    predicted = predictions(loss, chances, thresholds)
    measured = Measured(name, part, predicted, chances, data.classes, separator, params)
    counts = confusion(loss, predicted, part.labels, len(data.classes))
    evals = {record["step"]: record for record in run.log.history if record["kind"] == "eval"}
    rates = [record["tokens_per_second"] for record in run.log.history if record["kind"] == "train"]
    found = {
        "batches_per_epoch": batches,
        "parameters_total": sum(shape.size for shape in run.model.shapes.values()),
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "examples": {name: len(part) for name, part in data.parts().items()},
            "notes": list(data.notes),
            "trees": data.lengths is not None,
        },
        "best_step": best,
        "metric": run.metric,
        **{key: over_seeds(value) for key, value in evals[best].items() if key.startswith("val_")},
        "last_val_accuracy": over_seeds(evals[run.last]["val_accuracy"]),
        "evaluations": [
            {"step": step, **{key: mean(record[key]) for key in ("val_loss", "val_accuracy")}}
            for step, record in evals.items()
        ],
        "measured_on": name,
        **_thresholds(loss, logits, part.labels, thresholds),
        **{key: over_seeds(values) for key, values in numbers.items()},
        "confusion": counts.tolist(),
        "compiled_shapes": shapes,
        "seconds_per_step": (run.seconds - run.checking) / run.last,
        "tokens_per_second": float(np.median(rates)) if rates else None,
        "peak_memory": peak_memory(),
    }
    summary = run.summary(identity=dict(identity), **found)
    if jax.process_index() == 0:
        panels = {run.metric: f"validation {NAMES[run.metric.removeprefix('val_')]}"}
        plots.training_curves(
            run.log.history,
            run.seeds,
            out / "curves.png",
            unit="nats per example",
            best=best,
            validation=panels,
        )
        write_predictions(out, measured, run.seeds, loss, data.ids.get(name), data.texts.get(name))
    if more is not None:
        more(run, measured)
    run.write(summary)
    for line in closing(summary):
        say(line)
    say(f"files: {resume.listing(out)} in {out}")
    return summary


def closing(summary: Mapping[str, Any]) -> list[str]:
    """What summary.json says at the end of a run."""
    found = {name: summary[name]["per_seed"] for name in NAMES if name in summary}
    if "at_half" in summary:
        half = {name: summary["at_half"][name]["per_seed"] for name in ("f1", "micro_f1")}
        more = [f"the thresholds of the labels maximise validation F1; at 0.5 for all: {listed(half)}"]
    else:
        more = []
    metric = summary["metric"]
    chosen = f"{NAMES[metric.removeprefix('val_')]} {mean_and_spread(summary[metric]['per_seed'])}"
    return [
        f"done: {summary['measured_on']} {listed(found)}; validation {chosen} at step {summary['best_step']}; "
        f"{clock(summary['seconds'])}, {summary['seconds_per_step']:.3f} seconds a step",
        *more,
    ]


def _thresholds(
    loss: LossKind, logits: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None
) -> dict[str, Any]:
    """What the summary has besides where texts have several labels."""
    if thresholds is None:
        return {}
    half = {name: over_seeds(values) for name, values in scores(loss, logits, labels).items()}
    return {"thresholds": thresholds.tolist(), "at_half": half}


def write_predictions(
    out: Path,
    measured: Measured,
    seeds: Sequence[int],
    loss: LossKind,
    ids: Sequence[str] | None,
    texts: Sequence[str] | None,
) -> None:
    """Writes confusion.png, and predictions.csv: id, text, label, and prediction and probabilities of every seed."""
    labels, classes = measured.part.labels, measured.classes
    counts = confusion(loss, measured.predicted, labels, len(classes)).sum(axis=0)
    title = measured.name + (f", sum of {len(seeds)} seeds" if len(seeds) > 1 else "")
    columns = CELLS if loss == "multilabel" else None
    plots.confusion(counts, classes, out / "confusion.png", title=title, columns=columns)
    header = [f"{x}_seed{seed}" for seed in seeds for x in ("prediction", *(f"p_{c}" for c in classes))]
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(["text"] if texts else []), "label", *header])
        for i, example in enumerate(ids or range(len(labels))):
            row = [example, *([texts[i]] if texts else []), measured.label(labels[i])]
            for predicted, chances in zip(measured.predicted, measured.chances, strict=True):
                row += [measured.label(predicted[i]), *(f"{p:.4f}" for p in chances[i])]
            writer.writerow(row)
