"""Accuracy, F1 and AUC of predicted probabilities, by scikit-learn."""

import numpy as np

from train.tasks.classify.losses import example_losses, probabilities


def scores(kind: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
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


def predictions(kind: str, chances: np.ndarray) -> np.ndarray:
    """The most likely class, or for "multilabel" every label that is likelier than not, as 0 and 1."""
    return (chances > 0.5).astype(np.int32) if kind == "multilabel" else chances.argmax(axis=-1)


def _one_seed(kind: str, chances: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn import metrics  # half a second, which --help should not take

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
