"""One step of causal hierarchical attention: one token of one sequence and the open nodes, those being filled."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.tree.pooling import Biases, divide, log_sum, pool
from jaxattn.tree.tree import Tree


class Token(NamedTuple):
    """query (K, G, H), key (K, H), value (K, V) and log_weight (K,), the log of the weight as a key."""

    query: Array
    key: Array
    value: Array
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
    *tables, parent = levels
    slots, parents = _path(tree, position)
    in_tree = slots[0] >= 0
    node = token.key, token.value, jnp.where(in_tree, token.log_weight, -jnp.inf)
    logits, values, updated = [], [], []
    for level, (slot, bias) in enumerate(zip(slots, biases, strict=True)):
        index = jnp.arange(tree.branching[level])
        keys, mean_values, log_weights = (table[level] for table in tables)
        # Children of another node are left over from before, and the open child also contains the new token.
        log_weights = jnp.where(parents[level] == parent[level], log_weights, -jnp.inf)
        is_open = index == slot
        keys = jnp.where(is_open[:, None], node[0][:, None], keys)
        mean_values = jnp.where(is_open[:, None], node[1][:, None], mean_values)
        log_weights = jnp.where(is_open, node[2][:, None], log_weights)
        score = scale * jnp.einsum("kgh,kbh->kgb", token.query, keys)
        if bias is not None:
            score += jnp.take(bias, jnp.maximum(slot, 0), axis=1)
        seen = index <= slot if level == 0 and include_self else index < slot
        logits.append(jnp.where(seen, score + log_weights[:, None, :], -jnp.inf))
        values.append(mean_values)
        updated.append((keys, mean_values, log_weights))
        log_total, mean_key, mean_value = pool(log_weights, keys, mean_values)
        node = mean_key, mean_value, log_total
    _, powers, total = log_sum(jnp.concatenate(logits, axis=-1))
    out = divide(jnp.einsum("kgb,kbv->kgv", powers, jnp.concatenate(values, axis=1)), total[..., None])
    tables = [
        tuple(jnp.where(in_tree, after, before) for after, before in zip(new, old, strict=True))
        for new, old in zip(zip(*updated, strict=True), tables, strict=True)
    ]
    return (*tables, jnp.where(in_tree, jnp.stack(parents), parent)), out


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
