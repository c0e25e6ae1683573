"""Causal attention of one tile inside a kernel: every token scores the means of what precedes it, in one softmax."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.pallas.products import as_column
from jaxattn.tree.pallas.levels import Leaves, Nodes, diagonal, key_levels, parent, same_family, token_places
from jaxattn.tree.pallas.plan import Plan, Tiling
from jaxattn.tree.pallas.products import narrow, near


def attend_tile(plan: Plan, leaves: Leaves, above: list[Nodes] | None, n: Any) -> tuple[Nodes, list[Array]]:
    """The roots, and the outputs (S, V, W) by group.

    Args:
        plan: of the call.
        leaves: the tokens of the tile.
        above: for every level of the crown, the family that the tile is below.
        n: the tile.
    """
    tiling, levels = plan.tiling, key_levels(plan, leaves)
    scored = [(nodes, _earlier(tiling, level)) for level, nodes in enumerate(levels[:-1], 1)]
    scored += [(nodes, _above(tiling, level, n)) for level, nodes in enumerate(above or [])]
    # A copy for every block of tokens.
    blocks = [
        (jax.tree.map(lambda x: jnp.broadcast_to(x, (tiling.num_blocks, *x.shape)), nodes), seen)
        for nodes, seen in scored
    ]
    own, weight = _seen_leaves(plan), as_column(leaves.log_weight)
    outs = []
    for query in leaves.query:
        logits = plan.scale * narrow("tn", plan.dtype, leaves.key, query) + weight
        parts = [jnp.where(own, logits, -jnp.inf)]
        for nodes, seen in blocks:
            logits = plan.scale * near("nn", plan.dtype, nodes.key, query) + nodes.log_weight
            parts.append(jnp.where(seen, logits, -jnp.inf))
        top = functools.reduce(jnp.maximum, (lax.stop_gradient(x).max(axis=1, keepdims=True) for x in parts))
        top = jnp.where(top > -jnp.inf, top, 0)
        powers = [jnp.exp(x - top) for x in parts]
        total = functools.reduce(jnp.add, (x.sum(axis=1, keepdims=True) for x in powers))
        out = narrow("nn", plan.dtype, leaves.value, powers[0])
        for (nodes, _), power in zip(blocks, powers[1:], strict=True):
            out += narrow("tn", plan.dtype, nodes.value, power)
        outs.append(out / jnp.where(total > 0, total, 1))
    return levels[-1], outs


def _seen_leaves(plan: Plan) -> Array:
    """(W, W) bool: which tokens (rows) of its family a token scores."""
    count = plan.tiling.block
    rows, columns = (lax.broadcasted_iota(jnp.int32, (count, count), axis) for axis in (0, 1))
    seen = same_family(plan.tiling.branching[0], count) & (rows <= columns)
    return seen if plan.include_self else seen & ~diagonal(count)


def _earlier(tiling: Tiling, level: int) -> Array:
    """(S, M, W) bool: which nodes of a level are earlier siblings of the ancestor of a token."""
    place = token_places(tiling, tiling.nodes(level))
    node, ancestor = lax.broadcasted_iota(jnp.int32, place.shape, 1), parent(place, tiling.widths[level])
    size = tiling.branching[level]
    return (node < ancestor) & (parent(node, size) == parent(ancestor, size))


def _above(tiling: Tiling, level: int, n: Any) -> Array:
    """(S, b, W) bool: which siblings at a level of the crown are before the ancestor of a token."""
    size = tiling.crown[level]
    place = token_places(tiling, size)
    node = lax.broadcasted_iota(jnp.int32, place.shape, 1)
    if level:
        return node < lax.rem(lax.div(n, jnp.int32(tiling.tiles_below[level - 1])), jnp.int32(size))
    first = lax.rem(n * tiling.roots, jnp.int32(size))
    return node < first + parent(place, tiling.widths[-1])
