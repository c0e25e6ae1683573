"""Losses of classifiers: one of several classes, yes or no, or any number of labels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.engine.loop import Loss, cross_entropy
from jaxattn_train.tasks.shared.options import LossKind


def example_loss(
    kind: LossKind,
    logits: Float[Array, "B C"],
    labels: Int[Array, " B"] | Int[Array, "B C"],
    class_weights: Float[Array, "..."] | None = None,
) -> Float[Array, " B"]:
    """w · −log p(label) of every example, in nats and float32.

    Args:
        kind: "softmax" over the logits; "binary", one logit z with p(1) = sigmoid(z); or "multilabel", the mean over
            labels that are each binary.
        logits: one a class; (B, 1) for "binary".
        labels: number of the class; for "multilabel" 0 or 1 for each label.
        class_weights: w, (C,) by class, (2,) for "binary", or (2, C) by value and label; None for 1.

    Examples:
        >>> example_loss("softmax", jnp.zeros((1, 4)), jnp.array([2]), jnp.array([1.0, 1.0, 2.0, 1.0])) / jnp.log(4)
        Array([2.], dtype=float32)
        >>> example_loss("multilabel", jnp.zeros((1, 2)), jnp.array([[1, 0]])) / jnp.log(2)
        Array([1.], dtype=float32)
    """
    if kind == "softmax":
        loss = cross_entropy(logits, labels)
        return loss if class_weights is None else loss * class_weights[labels]
    if kind == "binary":
        labels, class_weights = labels[:, None], None if class_weights is None else class_weights[:, None]
    loss = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32))
    if class_weights is not None:
        loss = loss * jnp.where(labels == 1, class_weights[1], class_weights[0])
    return loss.mean(axis=-1)


def num_outputs(kind: LossKind, classes: int) -> int:
    """How many logits a loss reads."""
    return 1 if kind == "binary" else classes


def make_loss(kind: LossKind, class_weights: np.ndarray | None = None) -> Loss:
    """The weighted mean of `example_loss` over the rows of a batch, for `loop.make_train_step`."""
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def loss(
        model: Functional, params: Params, batch: dict[str, Any], key: PRNGKeyArray
    ) -> tuple[Array, Params]:
        inputs = {"token_mask": batch["mask"], "tree": batch["tree"]}
        logits, held = model.train_apply(params, batch["tokens"], key, **inputs)
        return (batch["weights"] * example_loss(kind, logits, batch["labels"], weights)).mean(), held

    return loss


def balanced_weights(kind: LossKind, labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights that make all classes count alike: examples / (number of classes · examples of the class).

    Args:
        kind: of the loss.
        labels: of the training examples.
        classes: how many there are.

    Returns:
        As `example_loss` reads them: (C,), (2,), or (2, C) for "multilabel".

    Examples:
        >>> balanced_weights("softmax", np.array([0, 0, 0, 1]), 2)
        array([0.66666667, 2.        ])
    """
    if kind != "multilabel":
        counts = np.bincount(labels, minlength=classes)
    else:
        counts = np.stack([(labels == 0).sum(axis=0), (labels == 1).sum(axis=0)])
    return len(labels) / (len(counts) * np.maximum(counts, 1))


def probabilities(kind: LossKind, logits: np.ndarray) -> np.ndarray:
    """Probabilities (..., C) of the classes or labels, float64, from logits.

    Examples:
        >>> probabilities("binary", np.array([[0.0]])).tolist()
        [[0.5, 0.5]]
    """
    wide = np.asarray(logits, np.float64)
    if kind == "softmax":
        return scipy.special.softmax(wide, axis=-1)
    yes = scipy.special.expit(wide)
    return np.concatenate([1 - yes, yes], axis=-1) if kind == "binary" else yes


def example_losses(kind: LossKind, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The unweighted loss of every seed and example (seeds, examples), from logits (seeds, examples, outputs)."""
    loss = jax.vmap(lambda one: example_loss(kind, one, jnp.asarray(labels)))
    return np.asarray(loss(jnp.asarray(logits)))
