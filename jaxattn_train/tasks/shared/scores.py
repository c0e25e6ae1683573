"""Accuracy, F1, AUC and confusion of predicted probabilities, by scikit-learn."""

import numpy as np

from jaxattn_train.tasks.shared.losses import example_losses, probabilities
from jaxattn_train.tasks.shared.options import LossKind


def scores(kind: LossKind, logits: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """The numbers of each seed.

    Args:
        kind: of the loss: "softmax", "binary" or "multilabel".
        logits: (seeds, examples, outputs).
        labels: (examples,) numbers of classes; for "multilabel" (examples, labels) of 0 and 1.

    Returns:
        "accuracy" (of sets of labels: the share that is right as a whole), "f1" (the mean over classes),
        "weighted_f1", "loss" (mean, without class weights), and "auc" (mean over classes, each against the others)
        where every class has examples and counterexamples.
    """
    found = [_one_seed(kind, probabilities(kind, seed), labels) for seed in logits]
    columns = {name: [numbers[name] for numbers in found] for name in found[0]}
    return columns | {"loss": example_losses(kind, logits, labels).mean(axis=1, dtype=np.float64).tolist()}


def predictions(kind: LossKind, chances: np.ndarray) -> np.ndarray:
    """The most likely class, or for "multilabel" every label that is likelier than not, as 0 and 1."""
    return (chances > 0.5).astype(np.int32) if kind == "multilabel" else chances.argmax(axis=-1)


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


def _one_seed(kind: LossKind, chances: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn import metrics  # takes half a second to import

    predicted = predictions(kind, chances)
    # Classes that neither occur nor are predicted say nothing; all others count, also where none is right.
    every = None if kind == "multilabel" else sorted({*labels.tolist(), *predicted.tolist()})
    found = {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "f1": float(metrics.f1_score(labels, predicted, average="macro", labels=every, zero_division=0)),
        "weighted_f1": float(
            metrics.f1_score(labels, predicted, average="weighted", labels=every, zero_division=0)
        ),
    }
    table = labels if kind == "multilabel" else np.eye(chances.shape[-1], dtype=int)[labels]
    if np.isin(table.sum(axis=0), (0, len(table))).sum() == 0:
        found["auc"] = float(metrics.roc_auc_score(table, chances, average="macro"))
    return found
