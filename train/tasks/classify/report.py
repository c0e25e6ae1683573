"""What a finished classification run leaves behind: test numbers of the best checkpoint, pictures, predictions."""

import csv
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.data.classification import ClassificationData
from train.engine import plots, resume
from train.engine.functional import Params
from train.engine.memory import peak_memory
from train.engine.metrics import clock, mean, mean_and_spread
from train.engine.run import Run
from train.tasks.charlm.report import over_seeds, provenance
from train.tasks.classify.config import ClassificationConfig


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """−log p(label) in nats, float64 (seeds, examples), from logits (seeds, examples, classes)."""
    return -_log_probabilities(logits)[:, np.arange(len(labels)), labels]


def accuracies(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """The share of right predictions of each seed."""
    return (logits.argmax(-1) == labels).mean(axis=1).tolist()


def confusion_counts(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Numbers of examples (seeds, true class, predicted class).

    Examples:
        >>> confusion_counts(np.array([[[0.0, 1.0], [2.0, 1.0]]]), np.array([0, 0])).tolist()
        [[[1, 1], [0, 0]]]
    """
    classes = logits.shape[-1]
    counts = np.zeros((len(logits), classes, classes), np.int64)
    for matrix, predicted in zip(counts, logits.argmax(-1), strict=True):
        np.add.at(matrix, (labels, predicted), 1)
    return counts


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """Accuracy and mean loss of each seed."""
    return {
        "accuracy": accuracies(logits, labels),
        "loss": losses(logits, labels).mean(axis=1).tolist(),
    }


def finish(
    config: ClassificationConfig,
    data: ClassificationData,
    run: Run,
    predict: Callable[[Params, str], np.ndarray],
    *,
    shapes: int,
    batches: int,
) -> dict[str, Any]:
    """Measures the best checkpoint on the test part (or on validation, where there is none), and writes the report.

    Args:
        config: of the run.
        data: the task.
        run: finished.
        predict: (parameters, name of a part) -> logits (seeds, examples, classes).
        shapes: how many shapes of batches were compiled.
        batches: of an epoch.

    Returns:
        The content of summary.json.
    """
    seeds, out, say = run.seeds, run.out, run.progress.say
    best, params = best_checkpoint(run)
    measured = "test" if data.test is not None else "validation"
    labels = data.parts()[measured].labels
    say(f"measuring the best checkpoint, of step {best}, on all {measured} data")
    logits = predict(params, measured)
    counts = confusion_counts(logits, labels)
    numbers = measure(logits, labels)
    summary = summarise(config, data, run, best, measured, numbers, shapes=shapes, batches=batches)
    summary["confusion"] = counts.tolist()
    if jax.process_index() == 0:
        plots.classification_curves(run.log.history, seeds, out / "curves.png")
        title = f"{measured} part" + (f", sum of {len(seeds)} seeds" if len(seeds) > 1 else "")
        plots.confusion(counts.sum(axis=0), data.classes, out / "confusion.png", title=title)
        ids = data.ids.get(measured) or [str(i) for i in range(len(labels))]
        _write_predictions(out / "predictions.tsv", data.classes, seeds, ids, labels, logits)
    return close_report(run, summary, numbers)


def best_checkpoint(run: Run) -> tuple[int, Params]:
    """The step of the best checkpoint, and its parameters."""
    best = run.store.best_step()
    assert best is not None, "the last step is always evaluated and saved"
    return best, run.state.params if best == run.last else run.store.params(best, run.target.params)


def summarise(
    config: ClassificationConfig,
    data: ClassificationData,
    run: Run,
    best: int,
    measured: str,
    numbers: Mapping[str, list[float]],
    *,
    shapes: int,
    batches: int,
) -> dict[str, Any]:
    """What every run puts into summary.json: what it was, what it measured, what it cost.

    Args:
        config: of the run.
        data: the task.
        run: finished.
        best: step of the best checkpoint.
        measured: the part that `numbers` are of.
        numbers: for each seed, by name.
        shapes: how many shapes of batches were compiled.
        batches: of an epoch.

    Returns:
        JSON-able values; a number on validation data has "val_" before its name.
    """
    evals = {record["step"]: record for record in run.log.history if record["kind"] == "eval"}
    rates = [record["tokens_per_second"] for record in run.log.history if record["kind"] == "train"]
    return {
        "config": dataclasses.asdict(config),
        "seeds": list(run.seeds),
        "steps": run.last,
        "batches_per_epoch": batches,
        "parameters": run.model.num_params(),
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "examples": {name: len(part) for name, part in data.parts().items()},
            "notes": list(data.notes),
            "trees": data.lengths is not None,
        },
        "best_step": best,
        **{name: over_seeds(evals[best][name]) for name in evals[best] if name.startswith("val_")},
        "last_val_accuracy": over_seeds(evals[run.last]["val_accuracy"]),
        "evaluations": [
            {"step": step, **{name: mean(record[name]) for name in ("val_loss", "val_accuracy")}}
            for step, record in evals.items()
        ],
        "measured_on": measured,
        **{name: over_seeds(values) for name, values in numbers.items()},
        "compiled_shapes": shapes,
        "seconds": run.seconds,
        "seconds_per_step": (run.seconds - run.checking) / run.last,
        "tokens_per_second": float(np.median(rates)) if rates else None,
        "peak_memory": peak_memory(),
        **provenance(run.mesh),
    }


def close_report(run: Run, summary: dict[str, Any], numbers: Mapping[str, list[float]]) -> dict[str, Any]:
    """Writes summary.json, the last file of a finished run, and says what came out."""
    if jax.process_index() == 0:
        (run.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    found = ", ".join(f"{name} {mean_and_spread(values)}" for name, values in numbers.items())
    run.progress.say(
        f"done: {summary['measured_on']} {found}; validation accuracy "
        f"{mean_and_spread(summary['val_accuracy']['per_seed'])} at step {summary['best_step']}; "
        f"{clock(run.seconds)}, {summary['seconds_per_step']:.3f} seconds a step"
    )
    run.progress.say(f"files: {resume.listing(run.out)} in {run.out}")
    return summary


def _write_predictions(
    path: Path, classes: Any, seeds: Any, ids: Any, labels: np.ndarray, logits: np.ndarray
) -> None:
    probabilities = np.exp(_log_probabilities(logits))
    columns = [f"{what}_seed{seed}" for seed in seeds for what in ("predicted", "probability")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, dialect="excel-tab")
        writer.writerow(["id", "label", *columns])
        for i, name in enumerate(ids):
            row = [name, classes[labels[i]]]
            for seed in range(len(seeds)):
                predicted = int(logits[seed, i].argmax())
                row += [classes[predicted], f"{probabilities[seed, i, predicted]:.4f}"]
            writer.writerow(row)


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
