"""Causal hierarchical attention of one sequence: every token scores the mean keys of what precedes it.

Token i shares one weight among all tokens below each earlier sibling of each of its ancestors, and scores it with its
own query; mean queries, as in the bidirectional form, would include later tokens.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.tree.grouping import query_tiles, siblings
from jaxattn.tree.pooling import Biases, Leaves, divide, pool, scores, weighted_sum
from jaxattn.tree.tree import Tree

# A grouping of tokens into tiles, the logits (K, P, R, G, b) of the tiles' tokens, and the values (K, P, b, V).
Scored = tuple[Any, Array, Array]


def attend_causal(tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool) -> Array:
    """The outputs (K, T, G, V)."""
    query, key, value, log_weight = leaves
    levels: list[Scored] = []
    for level in range(tree.height):
        group, tiles, bias = siblings(tree, level), query_tiles(tree, level), biases[level]
        key, value, log_weight = group.split(key), group.split(value), group.split(log_weight, -jnp.inf)
        if bias is not None:
            bias = jnp.take(bias, jnp.maximum(tiles.slots, 0), axis=1)  # (K, P, R, G, b)
        logits = scores(tiles.tokens.split(query), tiles.of_parent(key), scale, bias)
        logits += tiles.of_parent(log_weight)[:, :, None, None, :]
        slots, index = tiles.slots[..., None, None], jnp.arange(tree.branching[level])
        earlier = slots >= index if level == 0 and include_self else slots > index
        levels.append((tiles.tokens, jnp.where(earlier, logits, -jnp.inf), tiles.of_parent(value)))
        log_weight, key, value = pool(log_weight, key, value)
    return combine(levels)


def combine(levels: Sequence[Scored]) -> Array:
    """The weighted means (K, T, G, V) over what tokens scored on all levels."""
    tops = [tokens.join(logits.max(axis=-1)) for tokens, logits, _ in levels]
    top = lax.stop_gradient(jnp.stack(tops).max(axis=0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    zero = jnp.zeros((), top.dtype)
    total, out = zero, zero
    for tokens, logits, values in levels:
        # Where a tile has no token, a large key bias would overflow and its gradient become 0 times infinity.
        powers = jnp.exp(logits - tokens.split(top, jnp.inf)[..., None])
        total += tokens.join(powers.sum(axis=-1))
        out += tokens.join(weighted_sum(powers, values))
    return divide(out, total[..., None])
