"""Accuracy, F1, AUC and confusion of predicted probabilities, by scikit-learn."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxattn_train.engine.metrics import mean_and_spread
from jaxattn_train.tasks.shared.losses import example_losses, probabilities
from jaxattn_train.tasks.shared.options import LossKind

NAMES = {
    "accuracy": "accuracy",
    "f1": "macro-F1",
    "micro_f1": "micro-F1",
    "weighted_f1": "weighted F1",
    "auc": "AUC",
    "loss": "loss",
}
"""What `scores` gives, as it is printed."""


def listed(found: Mapping[str, Sequence[float]]) -> str:
    """Scores over seeds, for the terminal.

    Examples:
        >>> listed({"f1": [0.5], "loss": [1.0, 3.0]})
        'macro-F1 0.5000, loss 2.0000 ± 1.4142'
    """
    return ", ".join(f"{NAMES[name]} {mean_and_spread(values)}" for name, values in found.items())


def scores(
    kind: LossKind, logits: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None = None
) -> dict[str, list[float]]:
    """The numbers of each seed.

    Args:
        kind: of the loss: "softmax", "binary" or "multilabel".
        logits: (seeds, examples, outputs).
        labels: (examples,) numbers of classes; for "multilabel" (examples, labels) of 0 and 1.
        thresholds: see `predictions`.

    Returns:
        "accuracy" (of sets of labels: the share that is right as a whole), "f1" (the mean over classes),
        "micro_f1" (of sets of labels), "weighted_f1", "loss" (mean, without class weights), and "auc" (mean over
        classes, each against the others) where every class has examples and counterexamples.
    """
    chances = probabilities(kind, logits)
    predicted = predictions(kind, chances, thresholds)
    found = [_one_seed(kind, *one, labels) for one in zip(predicted, chances, strict=True)]
    columns = {name: [numbers[name] for numbers in found] for name in found[0]}
    return columns | {"loss": example_losses(kind, logits, labels).mean(axis=1, dtype=np.float64).tolist()}


def predictions(kind: LossKind, chances: np.ndarray, thresholds: np.ndarray | None = None) -> np.ndarray:
    """The most likely class, or for "multilabel" every label that is likelier than its threshold, as 0 and 1.

    Args:
        kind: of the loss.
        chances: probabilities (..., examples, classes).
        thresholds: (..., labels); None for 0.5.
    """
    if kind != "multilabel":
        return chances.argmax(axis=-1)
    least = 0.5 if thresholds is None else np.asarray(thresholds)[..., None, :]
    return (chances > least).astype(np.int32)


def best_thresholds(chances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The thresholds (..., labels) with the largest F1 of each label; of several the one nearest to 0.5.

    They lie halfway between neighbouring probabilities. A label without examples keeps 0.5.

    Args:
        chances: probabilities (..., examples, labels).
        labels: (examples, labels) of 0 and 1.

    Examples:
        >>> best_thresholds(np.array([[0.1], [0.2], [0.4], [0.3]]), np.array([[0], [0], [1], [1]])).round(6)
        array([0.25])
    """
    if chances.ndim > 2:
        return np.stack([best_thresholds(one, labels) for one in chances])
    found = np.full(chances.shape[1], 0.5)
    for label in np.flatnonzero(labels.any(axis=0)):
        values = np.unique(chances[:, label])
        tried = np.concatenate([[0.5], (values[1:] + values[:-1]) / 2])
        tried = tried[np.argsort(abs(tried - 0.5), kind="stable")]
        said, truth = chances[:, label] > tried[:, None], labels[:, label] == 1
        found[label] = tried[np.argmax(2 * (said & truth).sum(axis=1) / (said.sum(axis=1) + truth.sum()))]
    return found


def confusion(kind: LossKind, predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Numbers of examples (seeds, true class, predicted class); for "multilabel" (seeds, label, cell).

    The cells of a label are true negatives, false positives, false negatives and true positives.

    Examples:
        >>> confusion("softmax", np.array([[1, 0]]), np.array([0, 0]), 2).tolist()
        [[[1, 1], [0, 0]]]
    """
    from sklearn import metrics

    if kind == "multilabel":
        found = [metrics.multilabel_confusion_matrix(labels, one).reshape(classes, 4) for one in predicted]
    else:
        found = [metrics.confusion_matrix(labels, one, labels=range(classes)) for one in predicted]
    return np.stack(found)


def _one_seed(
    kind: LossKind, predicted: np.ndarray, chances: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    from sklearn import metrics  # takes half a second to import

    # Classes that neither occur nor are predicted say nothing; all others count, also where none is right.
    every = None if kind == "multilabel" else sorted({*labels.tolist(), *predicted.tolist()})
    found = {"accuracy": float(metrics.accuracy_score(labels, predicted))}
    averages = {"f1": "macro"} | ({"micro_f1": "micro"} if kind == "multilabel" else {})
    for name, average in (averages | {"weighted_f1": "weighted"}).items():
        score = metrics.f1_score(labels, predicted, average=average, labels=every, zero_division=0)
        found[name] = float(score)
    table = labels if kind == "multilabel" else np.eye(chances.shape[-1], dtype=int)[labels]
    if np.isin(table.sum(axis=0), (0, len(table))).sum() == 0:
        found["auc"] = float(metrics.roc_auc_score(table, chances, average="macro"))
    return found
