"""The levels of the subtrees of one tile inside a kernel: the tokens, and means of keys and values.

Tokens are columns, in S blocks of W whose families are whole; nodes above them are rows. All is float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.pallas.layout import is_natural, load
from jaxattn.core.pallas.products import as_row
from jaxattn.tree.pallas.plan import Plan, Tiling, Tokens
from jaxattn.tree.pallas.products import near, wide


class Leaves(NamedTuple):
    """The tokens of a tile: query (S, H, W) by group, key (S, H, W), value (S, V, W) and log_weight (S, 1, W).

    Removed keys, values and whatever is padding are 0, and their log weight is −inf.
    """

    query: list[Array]
    key: Array
    value: Array
    log_weight: Array


class Nodes(NamedTuple):
    """M nodes: mean key (M, H), mean value (M, V) and log_weight (M, 1) of the keys below, −inf if there are none."""

    key: Any
    value: Any
    log_weight: Any


def read_blocks(plan: Plan, ref: Any, width: int, n: Any, *index: int) -> Array:
    """(S, width, W) of tile n, padding zeroed: what lies there may be NaN."""
    x = load(ref, width, index)
    blocks = jnp.stack([x[:, place] for place in _places(plan)])
    valid = _valid(plan, n)
    return (blocks if valid is None else jnp.where(valid, blocks, 0)).astype(jnp.float32)


def write_blocks(plan: Plan, ref: Any, width: int, x: Array, *index: int) -> None:
    """The inverse of `read_blocks`."""
    for i, place in enumerate(_places(plan)):
        block = x[i].astype(ref.dtype)
        if is_natural(width):
            ref[(*index, place, slice(None))] = block.T
        else:
            ref[(*index, slice(None), place)] = block


def _places(plan: Plan) -> list[slice]:
    block = plan.tiling.block
    return [slice(start, start + block) for start in range(0, plan.tiling.chunk, block)]


def _valid(plan: Plan, n: Any) -> Array | None:
    """(S, 1, W) bool: which tokens of tile n there are; None if all."""
    if plan.length % plan.tiling.chunk == 0:
        return None
    return n * plan.tiling.chunk + token_places(plan.tiling, 1) < plan.length


def token_places(tiling: Tiling, rows: int) -> Array:
    """(S, rows, W) the places of tokens in their tile."""
    shape = tiling.num_blocks, rows, tiling.block
    return tiling.block * lax.broadcasted_iota(jnp.int32, shape, 0) + lax.broadcasted_iota(
        jnp.int32, shape, 2
    )


def read_leaves(plan: Plan, tokens: Tokens, n: Any) -> Leaves:
    """The tokens of tile n."""
    tiling, valid, query = plan.tiling, _valid(plan, n), []
    log_weight = jnp.zeros((tiling.num_blocks, 1, tiling.block), jnp.float32)
    if tokens.query is not None:
        query = [read_blocks(plan, tokens.query, plan.width, n, g) for g in range(plan.groups)]
    key = read_blocks(plan, tokens.key, plan.width, n)
    value = read_blocks(plan, tokens.value, plan.value_width, n)
    if tokens.bias is not None:
        log_weight = read_blocks(plan, tokens.bias, 1, n)
        key, value = (jnp.where(log_weight > -jnp.inf, x, 0) for x in (key, value))
    return Leaves(query, key, value, log_weight if valid is None else jnp.where(valid, log_weight, -jnp.inf))


def _is_below(tiling: Tiling, level: int, child: int, node: Array, place: Array) -> Array:
    """Whether nodes of `level` are above nodes of level `child`."""
    first, size = node * tiling.widths[level], tiling.widths[child]
    return (first <= place * size) & (place * size < first + tiling.widths[level])


def below_blocks(tiling: Tiling) -> Array:
    """(S, M, W) bool: whether a node of level 1 is above a token."""
    place = token_places(tiling, tiling.nodes(1))
    return _is_below(tiling, 1, 0, lax.broadcasted_iota(jnp.int32, place.shape, 1), place)


def below_nodes(tiling: Tiling, level: int) -> Array:
    """(M, m) bool: whether a node of level + 1 is above one of `level`."""
    shape = tiling.nodes(level + 1), tiling.nodes(level)
    node, place = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    return _is_below(tiling, level + 1, level, node, place)


def same_family(size: int, count: int) -> Array:
    """(count, count) bool: whether two of consecutive nodes are among the same `size`."""
    rows, columns = (lax.broadcasted_iota(jnp.int32, (count, count), axis) for axis in (0, 1))
    return parent(rows, size) == parent(columns, size)


def parent(places: Array, size: int) -> Array:
    """places // size, `size` a power of two."""
    return lax.shift_right_logical(places, jnp.int32(size.bit_length() - 1))


def diagonal(count: int) -> Array:
    """(count, count) bool."""
    return same_family(1, count)


def total_over(reduce: Callable[..., Array], x: Array) -> Array:
    """(M, 1) of (M, m), or of (S, M, W)."""
    x = reduce(x, axis=-1, keepdims=True)
    return x if x.ndim == 2 else reduce(x, axis=0)


def weigh(member: Array, log_weight: Array) -> tuple[Array, Array]:
    """(shares of children in their nodes, log of their summed weights (M, 1)).

    Args:
        member: (M, m) or (S, M, W), see `below_nodes` and `below_blocks`.
        log_weight: (1, m) or (S, 1, W).
    """
    masked = jnp.where(member, log_weight, -jnp.inf)
    top = total_over(jnp.max, lax.stop_gradient(masked))
    top = jnp.where(top > -jnp.inf, top, 0)
    powers = jnp.exp(masked - top)
    total = total_over(jnp.sum, powers)
    divisor = jnp.where(total > 0, total, 1)
    return powers / divisor, jnp.where(total > 0, jnp.log(divisor) + top, -jnp.inf)


def pool_blocks(plan: Plan, shares: Array, x: Array) -> Array:
    """(M, D) the sums of shares (S, M, W) times tokens (S, D, W)."""
    return near("nt", plan.dtype, shares, x).sum(axis=0)


def key_levels(plan: Plan, leaves: Leaves) -> list[Nodes]:
    """The nodes of all levels above the leaves, the roots of the subtrees last."""
    shares, log_weight = weigh(below_blocks(plan.tiling), leaves.log_weight)
    key, value = (pool_blocks(plan, shares, x) for x in (leaves.key, leaves.value))
    found = [Nodes(key, value, log_weight)]
    for level in range(1, len(plan.tiling.branching)):
        nodes = found[-1]
        share, log_weight = weigh(below_nodes(plan.tiling, level), as_row(nodes.log_weight))
        found.append(Nodes(wide("nn", share, nodes.key), wide("nn", share, nodes.value), log_weight))
    return found
