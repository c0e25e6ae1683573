"""What a finished fine-tuning leaves behind: test numbers, pictures, and the predictions with their texts."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.data.token_examples import TextData
from train.engine import plots
from train.engine.functional import Params
from train.engine.run import Run
from train.tasks.classify.losses import probabilities
from train.tasks.classify.report import best_checkpoint, close_report, summarise
from train.tasks.classify.scores import predictions, scores
from train.tasks.finetune.config import FinetuneConfig
from train.tasks.finetune.relevance_plot import Coloured, plot_relevance, token_strings


def finish(
    encoder: Any,
    config: FinetuneConfig,
    data: TextData,
    run: Run,
    predict: Callable[[Params, str], np.ndarray],
    *,
    shapes: int,
    batches: int,
) -> dict[str, Any]:
    """Measures the best checkpoint on the test part (or on validation, where there is none), and writes the report.

    Args:
        encoder: with the tokenizer.
        config: of the run.
        data: the task.
        run: finished.
        predict: (parameters, name of a part) -> logits (seeds, examples, outputs).
        shapes: how many shapes of batches were compiled.
        batches: of an epoch.

    Returns:
        The content of summary.json.
    """
    kind, out = config.data.loss, run.out
    best, params = best_checkpoint(run)
    measured = "test" if data.test is not None else "validation"
    part = data.parts()[measured]
    run.progress.say(f"measuring the best checkpoint, of step {best}, on all {measured} data")
    logits = predict(params, measured)
    numbers = scores(kind, logits, part.labels)
    summary = summarise(config, data, run, best, measured, numbers, shapes=shapes, batches=batches)
    summary["parameters_total"] = sum(shape.size for shape in run.model.shapes.values())
    chances = probabilities(kind, logits)
    predicted = predictions(kind, chances)
    counts = confusion(kind, predicted, part.labels, len(data.classes))
    summary["confusion"] = counts.tolist()
    if jax.process_index() == 0:
        plots.classification_curves(run.log.history, run.seeds, out / "curves.png")
        title = f"{measured} part" + (f", sum of {len(run.seeds)} seeds" if len(run.seeds) > 1 else "")
        _plot_confusion(kind, counts.sum(axis=0), data.classes, out / "confusion.png", title)
        separator = config.data.label_separator or ","
        _write_predictions(out / "predictions.csv", data, measured, run.seeds, predicted, chances, separator)
    if config.evaluation.relevance_texts and config.model.head == "cls":
        run.progress.say("no relevance.png: the cls head reads one token, so that all relevance is on it")
    elif config.evaluation.relevance_texts:
        first = first_seed(run, params)
        coloured = relevance(
            config, encoder, data, measured, run.model.module(first), predicted[0], chances[0]
        )
        if jax.process_index() == 0:
            plot_relevance(coloured, out / "relevance.png", title=f"{measured} part, seed {run.seeds[0]}")
    return close_report(run, summary, numbers)


def confusion(kind: str, predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Numbers of examples by seed, true class and predicted class; of several labels by seed, label, and cell.

    The cells of a label are true negatives, false positives, false negatives and true positives.
    """
    if kind == "multilabel":
        cells = [(labels == truth) & (predicted == said) for truth in (0, 1) for said in (0, 1)]
        return np.stack([cell.sum(axis=1) for cell in cells], axis=-1)
    counts = np.zeros((len(predicted), classes, classes), np.int64)
    for matrix, one in zip(counts, predicted, strict=True):
        np.add.at(matrix, (labels, one), 1)
    return counts


def relevance(
    config: FinetuneConfig,
    encoder: Any,
    data: TextData,
    measured: str,
    model: Any,
    predicted: np.ndarray,
    chances: np.ndarray,
) -> list[Coloured]:
    """Some texts, evenly spaced over the part, with the relevance of each of their tokens."""
    part = data.parts()[measured]
    rows = np.unique(np.linspace(0, len(part) - 1, config.evaluation.relevance_texts).astype(int))
    padded = part.padded(rows, data.max_length)
    mask = np.arange(data.max_length) < padded.lengths[:, None]
    # One label of several is asked about at a time: the likeliest.
    asked = None if config.data.loss == "binary" else jnp.asarray(chances[rows].argmax(axis=-1))
    run = jax.jit(lambda ids, mask: model.relevance(ids, mask, classes=asked))
    found = np.asarray(run(jnp.asarray(padded.tokens), jnp.asarray(mask)))
    coloured = []
    for row, ids, length, shares in zip(rows, padded.tokens, padded.lengths, found, strict=True):
        truth = _names(part.labels[row], data.classes, ",")
        said = _names(predicted[row], data.classes, ",")
        likeliest = data.classes[int(chances[row].argmax())]
        about = "" if config.data.loss != "multilabel" else f", coloured for {likeliest}"
        heading = f"{said} (p {chances[row].max():.2f}; labelled {truth}){about}"
        coloured.append(Coloured(heading, token_strings(encoder, ids[:length]), shares[:length]))
    return coloured


def first_seed(run: Run, params: Params) -> Params:
    """The parameters of the first seed, whole on this process's first device."""
    whole = jax.jit(
        lambda x: x, out_shardings=jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    )
    return {name: jnp.asarray(np.asarray(value)[0]) for name, value in whole(params).items()}


def _plot_confusion(kind: str, counts: np.ndarray, classes: Sequence[str], path: Path, title: str) -> None:
    if kind != "multilabel":
        plots.confusion(counts, classes, path, title=title)
        return
    cells = ("true negative", "false positive", "false negative", "true positive")
    plots.heatmap(counts.tolist(), classes, cells, path, title=title, axes=("label", "texts"))


def _write_predictions(
    path: Path,
    data: TextData,
    measured: str,
    seeds: Sequence[int],
    predicted: np.ndarray,
    chances: np.ndarray,
    separator: str,
) -> None:
    columns = [
        f"{what}_seed{seed}" for seed in seeds for what in ("prediction", *(f"p_{c}" for c in data.classes))
    ]
    labels = data.parts()[measured].labels
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label", *columns])
        for i, (name, text) in enumerate(zip(data.ids[measured], data.texts[measured], strict=True)):
            row = [name, text, _names(labels[i], data.classes, separator)]
            for said, chance in zip(predicted, chances, strict=True):
                row += [_names(said[i], data.classes, separator), *(f"{p:.4f}" for p in chance[i])]
            writer.writerow(row)


def _names(labels: np.ndarray, classes: Sequence[str], separator: str) -> str:
    if np.ndim(labels) == 0:
        return classes[int(labels)]
    return separator.join(name for name, there in zip(classes, labels, strict=True) if there)
