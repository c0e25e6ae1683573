"""Hierarchical self-attention of one sequence: statistics from the leaves up, attention mass from the root down.

Arrays have key/value heads K first, then the nodes M of a level, or its families F and their children b, then the G
query heads of a key/value head: queries of one family are then one matrix. A removed leaf has log weight −inf;
everything is in log space, so that scores may have any size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.tree.families import join, split
from jaxattn.tree.tree import Tree

# For every level from the leaves up, what is added to the scores between siblings: (K, b, G, b), or None.
Biases = Sequence[Array | None]


class Leaves(NamedTuple):
    """query (K, T, G, H), key (K, T, H), value (K, T, V), log_weight (K, T): log of the weight as a key."""

    query: Array
    key: Array
    value: Array
    log_weight: Array


class Family(NamedTuple):
    """How the children of every family of one level share their attention.

    weights (K, F, b, G, b): of the row of child c on sibling d; on itself only at the leaves. inside (K, F, b, G):
    what child c spends below itself. value (K, F, b, V): mean values.
    """

    weights: Array
    inside: Array
    value: Array


def log_sum(x: Array) -> tuple[Array, Array, Array]:
    """(log Σ e^x, e^(x − max), their sum) over the last axis; −inf, zeros and 0 where all are −inf.

    No gradient passes through the maximum, nor is any infinite or NaN.
    """
    top = lax.stop_gradient(x.max(axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    powers = jnp.exp(x - top)
    total = powers.sum(axis=-1)
    positive = total > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, total, 1)) + top[..., 0], -jnp.inf), powers, total


def divided(x: Array, by: Array) -> Array:
    """x / by with 0 / 0 = 0."""
    return x / jnp.where(by == 0, 1, by)


def pool(log_weight: Array, *means: Array) -> tuple[Array, ...]:
    """The log of the summed weights of every family (…, F), and weighted means of (…, F, b, D) over its children."""
    total, powers, sums = log_sum(log_weight)
    share = divided(powers, sums[..., None])
    # Products, not sums of elementwise products: into those XLA would fuse the gathers, at many times the cost.
    return total, *(jnp.einsum("...d,...dh->...h", share, x) for x in means)


def scores(query: Array, key: Array, scale: float, bias: Array | None) -> Array:
    """scale q·k + bias of all pairs in every family: (K, F, c, G, H), (K, F, d, H) -> (K, F, c, G, d)."""
    rows = query.reshape(*query.shape[:2], -1, query.shape[-1])
    found = scale * jnp.einsum("kfrh,kfdh->kfrd", rows, key)
    found = found.reshape(*query.shape[:-1], -1)
    return found if bias is None else found + bias


def means(weights: Array, value: Array) -> Array:
    """Σ_d weights_d value_d in every family: (K, F, c, G, d), (K, F, d, V) -> (K, F, c, G, V)."""
    rows = weights.reshape(*weights.shape[:2], -1, weights.shape[-1])
    found = jnp.einsum("kfrd,kfdv->kfrv", rows, value)
    return found.reshape(*weights.shape[:-1], -1)


def bottom_up(
    tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool
) -> tuple[list[Family], Array]:
    """The sharing in all families, and φ (K, G) of the root."""
    query, key, value, log_weight = leaves
    count = (log_weight > -jnp.inf).astype(key.dtype)  # removed leaves are no rows either
    # The queries that enter means: `where`, since a removed row may hold NaN.
    pooled = jnp.where(count[:, :, None, None] > 0, query, 0)
    own: Array | None = None  # −phi of every node; None at the leaves, whose own scores are on the diagonal
    found = []
    for level in range(tree.height):
        pooled, key, value = (split(tree, level, x, 1) for x in (pooled, key, value))
        query = pooled if level else split(tree, 0, query, 1)
        log_weight = split(tree, level, log_weight, 1, -jnp.inf)
        count = split(tree, level, count, 1)
        bias = biases[level]
        logits = scores(query, key, scale, None if bias is None else bias[:, None])
        logits += log_weight[:, :, None, None, :]
        diagonal = jnp.eye(tree.branching[level], dtype=bool)[:, None, :]
        if own is not None:
            own = split(tree, level, own, 1, -jnp.inf)
            logits = jnp.where(diagonal, own[..., None], logits)
        elif not include_self:
            logits = jnp.where(diagonal, -jnp.inf, logits)
        log_total, powers, total = log_sum(logits)
        weights = divided(powers, total[..., None])
        inside = jnp.where(diagonal, weights, 0).sum(axis=-1)
        found.append(Family(weights if own is None else jnp.where(diagonal, 0, weights), inside, value))
        # The rows below a child count in proportion to their number.
        rows = count.sum(axis=-1)
        share = divided(count, rows[..., None])[..., None]
        own = jnp.where(share > 0, share * jnp.where(share > 0, log_total, 0), 0).sum(axis=2)
        own = jnp.where(rows[..., None] > 0, own, -jnp.inf)  # nothing is left below to attend to
        pooled = jnp.einsum("kfcz,kfcgh->kfgh", share, pooled)
        log_weight, key, value = pool(log_weight, key, value)
        count = rows
    assert own is not None
    return found, -own[:, 0]


def top_down(tree: Tree, families: list[Family]) -> Array:
    """The outputs (K, T, G, V): every ancestor's share of its siblings' means."""
    heads, _, _, groups = families[-1].inside.shape
    value = families[-1].value
    arrived = jnp.zeros((heads, 1, groups, value.shape[-1]), value.dtype)
    mass = jnp.ones((heads, 1, groups), value.dtype)  # what the ancestors so far spend below themselves
    for level, family in reversed(list(enumerate(families))):
        spent = means(mass[:, :, None, :, None] * family.weights, family.value)
        arrived = join(tree, level, arrived[:, :, None] + spent, 1)
        mass = join(tree, level, mass[:, :, None] * family.inside, 1)
    return arrived


def attend(tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool) -> Array:
    """The outputs (K, T, G, V) of hierarchical self-attention."""
    return top_down(tree, bottom_up(tree, leaves, biases, scale, include_self)[0])
