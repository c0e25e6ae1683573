"""Bidirectional hierarchical attention of one sequence: means from the leaves up, masses from the root down."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.tree.grouping import siblings
from jaxattn.tree.pooling import Biases, Leaves, divide, log_sum, pool, scores, weighted_sum
from jaxattn.tree.tree import Tree


class Sharing(NamedTuple):
    """How the children of each node of one level share their attention.

    weights (K, F, b, G, b): of the queries below child c on sibling d; on itself only at the leaves. inside
    (K, F, b, G): what child c spends below itself. value (K, F, b, V): mean values.
    """

    weights: Array
    inside: Array
    value: Array


def bottom_up(
    tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool
) -> tuple[list[Sharing], Array]:
    """The sharing at every level, and φ (K, G) of the root."""
    query, key, value, log_weight = leaves
    count = (log_weight > -jnp.inf).astype(key.dtype)  # removed leaves do not count as queries either
    # The queries that enter means: `where`, since a removed one may be NaN.
    pooled = jnp.where(count[:, :, None, None] > 0, query, 0)
    own: Array | None = None  # −φ of every node; None at the leaves, whose own scores are on the diagonal
    found = []
    for level in range(tree.height):
        group, bias = siblings(tree, level), biases[level]
        pooled, key, value, count = (group.split(x) for x in (pooled, key, value, count))
        log_weight = group.split(log_weight, -jnp.inf)
        logits = scores(
            pooled if level else group.split(query), key, scale, None if bias is None else bias[:, None]
        )
        logits += log_weight[:, :, None, None, :]
        diagonal = jnp.eye(tree.branching[level], dtype=bool)[:, None, :]
        if own is not None:
            own = group.split(own, -jnp.inf)
            logits = jnp.where(diagonal, own[..., None], logits)
        elif not include_self:
            logits = jnp.where(diagonal, -jnp.inf, logits)
        log_total, powers, total = log_sum(logits)
        weights = divide(powers, total[..., None])
        inside = jnp.where(diagonal, weights, 0).sum(axis=-1)
        found.append(Sharing(weights if own is None else jnp.where(diagonal, 0, weights), inside, value))
        # Children count in proportion to the number of queries below them.
        queries = count.sum(axis=-1)
        share = divide(count, queries[..., None])[..., None]
        own = jnp.where(share > 0, share * jnp.where(share > 0, log_total, 0), 0).sum(axis=2)
        own = jnp.where(queries[..., None] > 0, own, -jnp.inf)  # nothing below to attend to
        pooled = jnp.einsum("kfcz,kfcgh->kfgh", share, pooled)
        log_weight, key, value = pool(log_weight, key, value)
        count = queries
    assert own is not None
    return found, -own[:, 0]


def top_down(tree: Tree, levels: list[Sharing]) -> Array:
    """The outputs (K, T, G, V): every ancestor's share of its siblings' mean values."""
    heads, _, _, groups = levels[-1].inside.shape
    value = levels[-1].value
    out = jnp.zeros((heads, 1, groups, value.shape[-1]), value.dtype)
    mass = jnp.ones((heads, 1, groups), value.dtype)  # what the ancestors so far spend below themselves
    for level, sharing in reversed(list(enumerate(levels))):
        group = siblings(tree, level)
        spent = weighted_sum(mass[:, :, None, :, None] * sharing.weights, sharing.value)
        out = group.join(out[:, :, None] + spent)
        mass = group.join(mass[:, :, None] * sharing.inside)
    return out


def attend(tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool) -> Array:
    """The outputs (K, T, G, V)."""
    return top_down(tree, bottom_up(tree, leaves, biases, scale, include_self)[0])


def energy(tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool) -> Array:
    """φ (K, G) of the root."""
    return bottom_up(tree, leaves, biases, scale, include_self)[1]
