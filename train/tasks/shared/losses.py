"""Losses of classifiers as pure functions of logits and labels: softmax, binary, or several labels."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jaxtyping import Array, Float, Int, PRNGKeyArray

from train.engine.functional import Functional, Params
from train.engine.loop import Loss, cross_entropy

LossKind = Literal["softmax", "binary", "multilabel"]


def softmax_loss(
    logits: Float[Array, "B C"], labels: Int[Array, " B"], class_weights: Float[Array, " C"] | None = None
) -> Float[Array, " B"]:
    """w_y · −log softmax(logits)_y in nats.

    Args:
        logits: one a class.
        labels: y, the number of the class.
        class_weights: w; None for 1.

    Returns:
        The loss of every example, in float32.

    Examples:
        >>> softmax_loss(jnp.zeros((1, 4)), jnp.array([2]), jnp.array([1.0, 1.0, 2.0, 1.0])) / jnp.log(4)
        Array([2.], dtype=float32)
    """
    loss = cross_entropy(logits, labels)
    return loss if class_weights is None else loss * class_weights[labels]


def binary_loss(
    logits: Float[Array, "B 1"], labels: Int[Array, " B"], class_weights: Float[Array, " 2"] | None = None
) -> Float[Array, " B"]:
    """w_y · −log p(y), with p(1) = sigmoid(logit): one logit for two classes.

    Args:
        logits: one.
        labels: y, 0 or 1.
        class_weights: w of y = 0 and 1; None for 1.

    Returns:
        The loss of every example, in float32.
    """
    weights = None if class_weights is None else class_weights[:, None]
    return multilabel_loss(logits, labels[:, None], weights)


def multilabel_loss(
    logits: Float[Array, "B C"], labels: Int[Array, "B C"], class_weights: Float[Array, "2 C"] | None = None
) -> Float[Array, " B"]:
    """The mean over the labels c of w_yc · −log p(y_c), with p(1) = sigmoid(logit): the labels are independent.

    Args:
        logits: one a label.
        labels: y, 0 or 1 each.
        class_weights: w of y = 0 and 1 for each label; None for 1.

    Returns:
        The loss of every example, in float32.

    Examples:
        >>> multilabel_loss(jnp.zeros((1, 2)), jnp.array([[1, 0]])) / jnp.log(2)
        Array([1.], dtype=float32)
    """
    wanted = labels.astype(jnp.float32)
    loss = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), wanted)
    if class_weights is not None:
        loss = loss * jnp.where(labels == 1, class_weights[1], class_weights[0])
    return loss.mean(axis=-1)


LOSSES: dict[str, Callable[..., Array]] = {
    "softmax": softmax_loss,
    "binary": binary_loss,
    "multilabel": multilabel_loss,
}


def num_outputs(kind: str, classes: int) -> int:
    """How many logits a loss reads."""
    return 1 if kind == "binary" else classes


def make_loss(kind: str, class_weights: np.ndarray | None = None) -> Loss:
    """The weighted mean of a loss over the rows of a batch, for `loop.make_train_step`.

    Args:
        kind: a name of `LOSSES`.
        class_weights: see there.
    """
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def loss(
        model: Functional, params: Params, batch: dict[str, Any], key: PRNGKeyArray
    ) -> tuple[Array, Params]:
        logits, held = model.train_apply(
            params, batch["tokens"], key, token_mask=batch["mask"], tree=batch["tree"]
        )
        return (batch["weights"] * LOSSES[kind](logits, batch["labels"], weights)).mean(), held

    return loss


def balanced_weights(kind: str, labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights that make all classes count alike: examples / (number of classes · examples of the class).

    Args:
        kind: of the loss.
        labels: of the training examples.
        classes: how many there are.

    Returns:
        As the loss reads them: (C,), (2,), or (2, C) for "multilabel".

    Examples:
        >>> balanced_weights("softmax", np.array([0, 0, 0, 1]), 2)
        array([0.66666667, 2.        ])
    """
    if kind != "multilabel":
        counts = np.bincount(labels, minlength=classes)
    else:
        counts = np.stack([(labels == 0).sum(axis=0), (labels == 1).sum(axis=0)])
    return len(labels) / (len(counts) * np.maximum(counts, 1))


def probabilities(kind: str, logits: np.ndarray) -> np.ndarray:
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


def example_losses(kind: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The unweighted loss of every example and seed: (seeds, examples), from logits (seeds, examples, outputs)."""
    return np.asarray(jax.vmap(lambda one: LOSSES[kind](one, jnp.asarray(labels)))(jnp.asarray(logits)))
