"""Bidirectional hierarchical attention of one sequence: means from the leaves up, masses from the root down."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.tree.blocks import Blocks, Cut, cut
from jaxattn.tree.grouping import siblings
from jaxattn.tree.pooling import Biases, Leaves, divide, log_shares, pool, scores, weighted_sum
from jaxattn.tree.tree import Tree


class Sharing(NamedTuple):
    """How the children of each node of one level share their attention.

    weights (K, F, b, G, b): of the queries below child c on sibling d; on itself only at the leaves. inside
    (K, F, b, G): what child c spends below itself. value (K, F, b, V): mean values.
    """

    weights: Array
    inside: Array
    value: Array


class Nodes(NamedTuple):
    """The nodes of one level. Removed leaves count neither as keys nor as queries.

    query (K, M, G, H), key (K, M, H), value (K, M, V): means. log_weight (K, M): of the keys below. queries (K, M):
    how many queries are below. own (K, M, G): −φ; None at the leaves, whose own scores are on the diagonal.
    """

    query: Array
    key: Array
    value: Array
    log_weight: Array
    queries: Array
    own: Array | None


def leaf_nodes(leaves: Leaves) -> Nodes:
    """The leaves as nodes."""
    return Nodes(*leaves, (leaves.log_weight > -jnp.inf).astype(leaves.log_weight.dtype), None)


def bottom_up(
    tree: Tree, nodes: Nodes, biases: Biases, scale: float, include_self: bool
) -> tuple[list[Sharing], Nodes]:
    """The sharing at every level above the given nodes, which are the leaves of `tree`, and the root."""
    query, key, value, log_weight, queries, own = nodes
    found = []
    for level in range(tree.height):
        group, bias = siblings(tree, level), biases[level]
        query, key, value, queries = (group.split(x) for x in (query, key, value, queries))
        log_weight = group.split(log_weight, -jnp.inf)
        logits = scores(query, key, scale, None if bias is None else bias[:, None])
        logits += log_weight[:, :, None, None, :]
        diagonal = jnp.eye(tree.branching[level], dtype=bool)[:, None, :]
        if own is not None:
            own = group.split(own, -jnp.inf)
            logits = jnp.where(diagonal, own[..., None], logits)
        elif not include_self:
            logits = jnp.where(diagonal, -jnp.inf, logits)
        log_total, weights = log_shares(logits)
        inside = jnp.where(diagonal, weights, 0).sum(axis=-1)
        if own is None:
            # A removed query may be NaN.
            query = jnp.where(queries[..., None, None] > 0, query, 0)
        else:
            weights = jnp.where(diagonal, 0, weights)
        found.append(Sharing(weights, inside, value))
        # Children count in proportion to the number of queries below them.
        below = queries.sum(axis=-1)
        share = divide(queries, below[..., None])
        query = jnp.einsum("kfc,kfcgh->kfgh", share, query)
        share = share[..., None]
        own = jnp.where(share > 0, share * log_total, 0).sum(axis=2)
        own = jnp.where(below[..., None] > 0, own, -jnp.inf)  # nothing below to attend to
        log_weight, key, value = pool(log_weight, key, value)
        queries = below
    return found, Nodes(query, key, value, log_weight, queries, own)


def top_down(tree: Tree, levels: list[Sharing], out: Array, mass: Array) -> tuple[Array, Array]:
    """Outputs (K, T, G, V): every ancestor's share of its siblings' mean values; and what is left of the mass.

    Args:
        tree: of T leaves.
        levels: of `bottom_up`.
        out: (K, 1, G, V) of the root, 0 unless it has siblings.
        mass: (K, 1, G) what the ancestors of the root spend below themselves, 1 if there are none.
    """
    for level, sharing in reversed(list(enumerate(levels))):
        group = siblings(tree, level)
        spent = weighted_sum(mass[:, :, None, :, None] * sharing.weights, sharing.value)
        out = group.join(out[:, :, None] + spent)
        mass = group.join(mass[:, :, None] * sharing.inside)
    return out, mass


def attend(
    tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool, blocks: Blocks
) -> Array:
    """The outputs (K, T, G, V)."""
    heads, _, groups, _ = leaves.query.shape
    dtype = leaves.log_weight.dtype
    start = jnp.zeros((heads, 1, groups, leaves.value.shape[-1]), dtype), jnp.ones((heads, 1, groups), dtype)
    parts = cut(tree, blocks, leaves.query.shape[1])
    if parts is None:
        levels, _ = bottom_up(tree, leaf_nodes(leaves.widened()), biases, scale, include_self)
        return top_down(tree, levels, *start)[0].astype(leaves.value.dtype)
    height = parts.subtree.height

    def in_subtree(leaves: Leaves, above: tuple[Array, Array]) -> Array:
        levels, _ = bottom_up(parts.subtree, leaf_nodes(leaves), biases[:height], scale, include_self)
        return top_down(parts.subtree, levels, *(x[:, None] for x in above))[0]

    roots = _roots(parts, leaves, biases[:height], scale, include_self)
    levels, _ = bottom_up(parts.crown, roots, biases[height:], scale, include_self)
    return parts.outputs(in_subtree, leaves, top_down(parts.crown, levels, *start))


def energy(
    tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool, blocks: Blocks
) -> Array:
    """φ (K, G) of the root."""
    parts, nodes = cut(tree, blocks, leaves.query.shape[1]), leaf_nodes(leaves.widened())
    if parts is not None:
        height = parts.subtree.height
        nodes = _roots(parts, leaves, biases[:height], scale, include_self)
        tree, biases = parts.crown, biases[height:]
    own = bottom_up(tree, nodes, biases, scale, include_self)[1].own
    assert own is not None
    return -own[:, 0]


def _roots(parts: Cut, leaves: Leaves, biases: Biases, scale: float, include_self: bool) -> Nodes:
    """The leaves of the crown."""

    def root(leaves: Leaves) -> Nodes:
        nodes = bottom_up(parts.subtree, leaf_nodes(leaves), biases, scale, include_self)[1]
        return jax.tree.map(lambda x: x[:, 0], nodes)

    return parts.roots(root, leaves)
