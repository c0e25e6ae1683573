"""Causal hierarchical attention of one sequence: every token scores the mean keys of what precedes it.

Token i shares one weight among all tokens below each earlier sibling of each of its ancestors, and scores it with its
own query; mean queries, as in the bidirectional form, would include later tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxattn.tree.blocks import Blocks, cut
from jaxattn.tree.grouping import Grouping, query_tiles, siblings
from jaxattn.tree.pooling import Biases, Leaves, divide, pool, scores, weighted_sum
from jaxattn.tree.tree import Tree

# A grouping of tokens into tiles, the logits (K, P, R, G, b) of the tiles' tokens, and the values (K, P, b, V).
Scored = tuple[Any, Array, Array]


class Means(NamedTuple):
    """Of the nodes of one level: log_weight (K, M), mean key (K, M, H) and value (K, M, V)."""

    log_weight: Array
    key: Array
    value: Array


class Earlier(NamedTuple):
    """What all tokens of each of M subtrees score at one level above.

    offset (K, M, G, b): what is added to the logits of the children, −inf for those that are not earlier. key
    (K, M, b, H) and value (K, M, b, V): their means.
    """

    offset: Array
    key: Array
    value: Array


def attend_causal(
    tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool, blocks: Blocks
) -> Array:
    """The outputs (K, T, G, V)."""
    parts = cut(tree, blocks, leaves.query.shape[1])
    if parts is None:
        out = combine(own_levels(tree, leaves.widened(), biases, scale, include_self)[0])
        return out.astype(leaves.value.dtype)
    height = parts.subtree.height

    def root(leaves: Leaves) -> Means:
        means = own_levels(parts.subtree, leaves, biases[:height], scale, include_self)[1]
        return Means(*(x[:, 0] for x in means))

    def attend(leaves: Leaves, above: Sequence[Earlier]) -> Array:
        levels, _ = own_levels(parts.subtree, leaves, biases[:height], scale, include_self)
        return combine([*levels, *(seen_by_all(leaves.query, x, scale) for x in above)])

    above = earlier(parts.crown, parts.roots(root, leaves), biases[height:])
    return parts.outputs(attend, leaves, above)


def own_levels(
    tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool
) -> tuple[list[Scored], Means]:
    """All levels of a tree from the leaves up, and the means of the root."""
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
        seen = slots >= index if level == 0 and include_self else slots > index
        levels.append((tiles.tokens, jnp.where(seen, logits, -jnp.inf), tiles.of_parent(value)))
        log_weight, key, value = pool(log_weight, key, value)
    return levels, Means(log_weight, key, value)


def families(crown: Tree, means: Means) -> list[Means]:
    """For every level of the crown, its nodes (K, P, b, …) by family."""
    found = []
    for level in range(crown.height):
        group = siblings(crown, level)
        log_weight, key, value = means
        found.append(Means(group.split(log_weight, -jnp.inf), group.split(key), group.split(value)))
        means = Means(*pool(*found[-1]))
    return found


def earlier(crown: Tree, means: Means, biases: Biases) -> list[Earlier]:
    """For every level of the crown, what its leaves score there."""
    found = []
    below = 1
    for family, size, bias in zip(families(crown, means), crown.branching, biases, strict=True):
        slot = np.arange(crown.length) // below % size
        below *= size

        def of_parent(x: Array, same: int = below) -> Array:
            return jnp.repeat(x, same, axis=1)[:, : crown.length]

        seen = np.arange(size) < slot[:, None]
        offset = jnp.where(seen, of_parent(family.log_weight), -jnp.inf)[:, :, None]
        offset = offset if bias is None else offset + bias[:, slot]
        found.append(Earlier(offset, of_parent(family.key), of_parent(family.value)))
    return found


def seen_by_all(query: Array, x: Earlier, scale: float) -> Scored:
    """The level at which all tokens (K, T, G, H) of a subtree score the same nodes."""
    length = query.shape[1]
    logits = scores(query[:, None], x.key[:, None], scale, x.offset[:, None, None])
    return Grouping(length, (1, length)), logits, x.value[:, None]


def combine(levels: Sequence[Scored]) -> Array:
    """The weighted means (K, T, G, V) over what tokens scored on all levels."""
    tops = [tokens.join(logits.max(axis=-1)) for tokens, logits, _ in levels]
    top = lax.stop_gradient(jnp.stack(tops).max(axis=0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total, out = jnp.zeros((), top.dtype), jnp.zeros((), top.dtype)
    for tokens, logits, values in levels:
        # Where a tile has no token, a large key bias would overflow and its gradient become 0 times infinity.
        powers = jnp.exp(logits - tokens.split(top, jnp.inf)[..., None])
        total += tokens.join(powers.sum(axis=-1))
        out += tokens.join(weighted_sum(powers, values))
    return divide(out, total[..., None])
