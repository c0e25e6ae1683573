"""Bidirectional attention of one tile inside a kernel: means from the leaves up, masses from the roots down."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.pallas.products import as_column, as_row
from jaxattn.tree.pallas.levels import (
    Leaves,
    Nodes,
    below_blocks,
    below_nodes,
    diagonal,
    key_levels,
    pool_blocks,
    same_family,
    total_over,
)
from jaxattn.tree.pallas.plan import Plan
from jaxattn.tree.pallas.products import narrow, near, wide


class Roots(NamedTuple):
    """Of the R subtrees of a tile: their keys, queries (R, 1) the number below; by group mean query and own = −φ."""

    nodes: Nodes
    queries: Any
    query: list[Any]
    own: list[Any]


class Above(NamedTuple):
    """By group: what the crown gives to every token of a subtree, out (R, V), and what it leaves it, mass (R, 1)."""

    out: list[Any]
    mass: list[Any]


class _Sharing(NamedTuple):
    """weights (M, M) of nodes (columns) on siblings (rows), inside (1, M): what each spends below itself."""

    weights: Array
    inside: Array


class _Queries(NamedTuple):
    """How queries are averaged: shares of tokens in level 1, (S, M, W), of each level in the next, and counts."""

    shares: list[Array]
    number: Array


def attend_tile(plan: Plan, leaves: Leaves, above: Above | None, n: Any) -> tuple[Roots, list[Array]]:
    """The roots, and the outputs (S, V, W) by group."""
    levels, queries = key_levels(plan, leaves), _query_shares(plan, leaves)
    if above is None:
        out = jnp.zeros((plan.tiling.roots, plan.value_width), jnp.float32)
        above = Above([out] * plan.groups, [jnp.ones((plan.tiling.roots, 1), jnp.float32)] * plan.groups)
    roots, outs = Roots(levels[-1], queries.number, [], []), []
    for g in range(plan.groups):
        at_leaves, sharing, query, own = _up(plan, leaves, levels, queries, g)
        roots.query.append(query)
        roots.own.append(own)
        outs.append(_down(plan, leaves, levels, at_leaves, sharing, above.out[g], above.mass[g]))
    return roots, outs


def _query_shares(plan: Plan, leaves: Leaves) -> _Queries:
    """Queries that are not removed count alike."""
    count, shares = (leaves.log_weight > -jnp.inf).astype(jnp.float32), []
    for level in range(len(plan.tiling.branching)):
        member = below_nodes(plan.tiling, level) if level else below_blocks(plan.tiling)
        share = jnp.where(member, as_row(count) if level else count, 0)
        count = total_over(jnp.sum, share)
        shares.append(share / jnp.maximum(count, 1))
    return _Queries(shares, count)


def _up(
    plan: Plan, leaves: Leaves, levels: list[Nodes], queries: _Queries, g: int
) -> tuple[Array, list[_Sharing], Array, Array]:
    """Weights (S, W, W) of tokens (columns), the sharing of levels 1 …, mean query and own of the roots."""
    tiling, query = plan.tiling, leaves.query[g]
    seen = same_family(tiling.branching[0], tiling.block)
    if not plan.include_self:
        seen &= ~diagonal(tiling.block)
    logits = plan.scale * narrow("tn", plan.dtype, leaves.key, query) + as_column(leaves.log_weight)
    weights, total = _softmax(jnp.where(seen, logits, -jnp.inf))
    own = _mean(queries.shares[0], total)
    mean = pool_blocks(plan, queries.shares[0], jnp.where(leaves.log_weight > -jnp.inf, query, 0))
    sharing = []
    for level, (nodes, share) in enumerate(zip(levels[:-1], queries.shares[1:], strict=True), 1):
        same, itself = same_family(tiling.branching[level], len(own)), diagonal(len(own))
        logits = plan.scale * wide("nt", nodes.key, mean) + nodes.log_weight
        logits = jnp.where(itself, own, jnp.where(same, logits, -jnp.inf))
        weight, total = _softmax(logits)
        inside = jnp.where(itself, weight, 0).sum(axis=0, keepdims=True)
        sharing.append(_Sharing(jnp.where(itself, 0, weight), inside))
        own, mean = _mean(share, total), wide("nn", share, mean)
    return weights, sharing, mean, own


def _softmax(logits: Array) -> tuple[Array, Array]:
    """(weights, log of the sum (…, 1, n)) of every column; 0 and −inf where all are −inf."""
    top = lax.stop_gradient(logits).max(axis=-2, keepdims=True)
    top = jnp.where(top > -jnp.inf, top, 0)
    powers = jnp.exp(logits - top)
    total = powers.sum(axis=-2, keepdims=True)
    divisor = jnp.where(total > 0, total, 1)
    return powers / divisor, jnp.where(total > 0, jnp.log(divisor) + top, -jnp.inf)


def _mean(share: Array, row: Array) -> Array:
    """(M, 1) means of rows (1, m) or (S, 1, W); −inf where there is no share at all."""
    terms = jnp.where(share > 0, share * jnp.where(share > 0, row, 0), 0)  # −inf where the share is 0
    return jnp.where(total_over(jnp.sum, share) > 0, total_over(jnp.sum, terms), -jnp.inf)


def _down(
    plan: Plan,
    leaves: Leaves,
    levels: list[Nodes],
    weights: Array,
    sharing: list[_Sharing],
    out: Array,
    mass: Array,
) -> Array:
    """The outputs (S, V, W) from what the crown gives and leaves."""
    tiling = plan.tiling
    for level, (nodes, share) in reversed(list(enumerate(zip(levels[:-1], sharing, strict=True), 1))):
        member = below_nodes(tiling, level)
        of_parent = jnp.where(member, mass, 0).sum(axis=0, keepdims=True)
        out = wide("tn", member.astype(jnp.float32), out)
        out += wide("tn", share.weights * of_parent, nodes.value)
        mass = as_column(of_parent * share.inside)
    member = below_blocks(tiling)
    of_parent = jnp.where(member, mass, 0).sum(axis=1, keepdims=True)
    out = jnp.broadcast_to(out, (tiling.num_blocks, *out.shape))
    given = near("tn", plan.dtype, out, member.astype(jnp.float32))
    return given + narrow("nn", plan.dtype, leaves.value, weights) * of_parent
