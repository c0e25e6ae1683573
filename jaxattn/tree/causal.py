"""Causal hierarchical attention of one sequence: every token meets the means of what lies before it.

Token i shares one weight among all tokens below each earlier sibling of each of its ancestors, and scores it with its
own query: means of queries, which the bidirectional form ties rows by, would hold later tokens.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.tree.families import Rows, join, split
from jaxattn.tree.sweeps import Biases, Leaves, divided, means, pool, scores
from jaxattn.tree.tree import Tree


def attend_causal(tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool) -> Array:
    """The outputs (K, T, G, V)."""
    query, key, value, log_weight = leaves
    met = []  # a level: (logits grouped by family, values there, grouped -> tokens, tokens -> grouped)
    for level in range(tree.height):
        key, value = (split(tree, level, x, 1) for x in (key, value))
        log_weight = split(tree, level, log_weight, 1, -jnp.inf)
        met.append(_meet(tree, level, query, key, value, log_weight, biases[level], scale, include_self))
        log_weight, key, value = pool(log_weight, key, value)
    tops = [back(logits.max(axis=-1), 1) for logits, _, back, _ in met]
    top = lax.stop_gradient(jnp.stack(tops).max(axis=0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total, out = jnp.zeros((), query.dtype), jnp.zeros((), query.dtype)
    for logits, values, back, group in met:
        powers = jnp.exp(logits - group(top, 1)[..., None])
        total += back(powers.sum(axis=-1), 1)
        out += back(means(powers, values), 1)
    return divided(out, total[..., None])


def _meet(
    tree: Tree,
    level: int,
    query: Array,
    key: Array,
    value: Array,
    log_weight: Array,
    bias: Array | None,
    scale: float,
    include_self: bool,
) -> tuple[Array, Array, Any, Any]:
    if level == 0:
        index = jnp.arange(tree.branching[0])
        earlier = index[:, None] >= index if include_self else index[:, None] > index
        logits = scores(split(tree, 0, query, 1), key, scale, None if bias is None else bias[:, None])
        logits += log_weight[:, :, None, None, :]
        return (
            jnp.where(earlier[:, None, :], logits, -jnp.inf),
            value,
            lambda x, axis: join(tree, 0, x, axis),
            lambda x, axis: split(tree, 0, x, axis),
        )
    rows = Rows(tree, level)
    if bias is not None:
        bias = jnp.take(bias, jnp.maximum(rows.slots, 0), axis=1)  # (K, P, R, G, b)
    logits = scores(rows.split(query, 1), rows.of_families(key, 1), scale, bias)
    logits += rows.of_families(log_weight, 1)[:, :, None, None, :]
    earlier = rows.slots[..., None, None] > jnp.arange(tree.branching[level])
    return jnp.where(earlier, logits, -jnp.inf), rows.of_families(value, 1), rows.join, rows.split
