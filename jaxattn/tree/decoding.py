"""One step of causal hierarchical attention: one token of one sequence and the open nodes, those being filled."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.tree.pooling import Biases, log_shares, pool
from jaxattn.tree.tree import Tree


class Token(NamedTuple):
    """query (K, G, H), mean (K, H + V), its key and value, and log_weight (K,), the log of the weight as a key."""

    query: Array
    mean: Array
    log_weight: Array


def step_token(
    tree: Tree, levels: Any, token: Token, position: Array, biases: Biases, scale: float, include_self: bool
) -> tuple[Any, Array]:
    """Lets a token attend and adds it to the open nodes.

    Args:
        tree: the tree of the sequence.
        levels: the fields of a `HierarchicalState` of one sequence but its length.
        token: the token.
        position: () its index; −1 for padding.
        biases: one a level.
        scale: factor on the scores.
        include_self: whether the token attends to itself.

    Returns:
        (new levels, output (K, G, V)); a token that is not in the tree leaves the levels as they are.
    """
    means, log_weights, parent = levels
    width = token.query.shape[-1]
    slots, parents = _path(tree, position)
    in_tree = slots[0] >= 0
    mean, log_weight = token.mean, token.log_weight
    found, updated = [], []
    for level, (slot, bias) in enumerate(zip(slots, biases, strict=True)):
        index = jnp.arange(tree.branching[level])
        is_open = index == slot
        # Children of another node are left over from before, and the open child also contains the new token.
        weights = jnp.where(parents[level] == parent[level], log_weights[level], -jnp.inf)
        weights = jnp.where(is_open, log_weight[:, None], weights)
        children = jnp.where(is_open[:, None], mean[:, None], means[level])
        score = scale * jnp.einsum("kgh,kbh->kgb", token.query, children[..., :width])
        if bias is not None:
            score += jnp.take(bias, jnp.maximum(slot, 0), axis=1)
        seen = index <= slot if level == 0 and include_self else index < slot
        logits = jnp.where(seen, score + weights[:, None, :], -jnp.inf)
        # The node above and what the queries read, in one product, so that the children are read once.
        totals, shares = log_shares(jnp.concatenate([weights[:, None], logits], axis=1))
        read = jnp.einsum("krb,kbd->krd", shares, children)
        log_weight, mean = totals[:, 0], read[:, 0]
        found.append((totals[:, 1:], read[:, 1:, width:]))
        updated.append((children, weights))
    log_totals, values = zip(*found, strict=True)
    _, out = pool(jnp.stack(log_totals, axis=-1), jnp.stack(values, axis=-2))
    new = (*zip(*updated, strict=True), jnp.stack(parents))
    return jax.tree.map(lambda after, before: jnp.where(in_tree, after, before), new, tuple(levels)), out


def _path(tree: Tree, token: Array) -> tuple[list[Array], list[Array]]:
    """Which child of its parent each ancestor of a token is, and that parent, from the leaves up; −1 for none."""
    slots, parents = [], []
    node = token
    for level, size in enumerate(tree.branching):
        flat = node
        if not tree.is_uniform:
            flat = jnp.take(tree.inverse[level], jnp.maximum(node, 0), mode="clip")
            flat = jnp.where(node < 0, -1, flat)
        slots.append(jnp.where(flat < 0, -1, flat % size))
        node = jnp.where(flat < 0, -1, flat // size)
        parents.append(node)
    return slots, parents
