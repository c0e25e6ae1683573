"""Hierarchical self-attention as its recursion reads: one node at a time, for float64; NumPy or JAX by `xp`.

Arrays are (…, T, width).
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.tree.nested import leaves


def depth(node):
    """The height of a node; all leaves are equally deep."""
    return 0 if isinstance(node, int) else 1 + depth(node[0])


def indicator(node, length):
    """(T,): 1 at the leaves of the node."""
    found = np.zeros(length)
    found[leaves(node)] = 1.0
    return found


def weighted_mean(x, weight):
    """Mean of x (…, T, D) with weights (…, T), and their sum."""
    total = weight.sum(-1)
    return (weight[..., None] * x).sum(-2) / where_positive(total, total, 1.0)[..., None], total


def where_positive(x, yes, no):
    xp = np if isinstance(x, (np.ndarray, np.generic)) else jnp
    return xp.where(x > 0, yes, no)


def log(x):
    xp = np if isinstance(x, (np.ndarray, np.generic)) else jnp
    return xp.where(x > 0, xp.log(xp.where(x > 0, x, 1.0)), -np.inf)


def softmax(xp, logits):
    """(shares, log of the sum) over the last axis; 0 and −inf where all are −inf."""
    highest = logits.max(-1, keepdims=True)
    highest = xp.where(xp.isfinite(highest), highest, 0.0)
    if xp is jnp:
        highest = jax.lax.stop_gradient(highest)
    powers = xp.exp(logits - highest)
    total = powers.sum(-1)
    return powers / where_positive(total, total, 1.0)[..., None], log(total) + highest[..., 0]


def key_weights(xp, key_bias, *arrays):
    """(log of the factor taken out, weights without it, 1 where kept, arrays with 0 where removed)."""
    gone = key_bias == -np.inf
    top = xp.where(gone, -np.inf, key_bias).max(-1, keepdims=True)
    top = xp.where(xp.isfinite(top), top, 0.0)
    if xp is jnp:
        top = jax.lax.stop_gradient(top)
    g = xp.where(gone, 0.0, xp.exp(xp.where(gone, 0.0, key_bias - top)))
    return top[..., 0], g, xp.where(gone, 0.0, 1.0), *(xp.where(gone[..., None], 0.0, x) for x in arrays)


def spread_over(share, row, weights):
    """share (…) of the rows `row` (T,), given to keys in proportion to `weights` (…, T)."""
    total = weights.sum(-1)
    each = weights / where_positive(total, total, 1.0)[..., None]
    return row[:, None] * (share[..., None] * each)[..., None, :]


def tree_attention(query, key, value, key_bias, nested, *, scale, include_self, sibling_bias=None, xp=jnp):
    """(out, weights (…, T, T), phi (…) of the root) of bidirectional attention.

    key_bias (…, T), −inf for a removed leaf; sibling_bias: (…, b, b) a level from the leaves up, or None.
    """
    length = query.shape[-2]
    top, g, rows, pooled_query, key, value = key_weights(xp, key_bias, query, key, value)

    def score(child, other, level, a, b):
        """S(C → D) + log g(D)."""
        if isinstance(child, int):
            q = query[..., child, :]
        else:
            q, _ = weighted_mean(pooled_query, rows * indicator(child, length))
        k, weight = weighted_mean(key, g * indicator(other, length))
        s = scale * (q * k).sum(-1) + log(weight)
        return s if sibling_bias is None else s + sibling_bias[level][..., a, b]

    sharing = {}

    def visit(node, path):
        """phi of the node; what its children do with their mass goes into `sharing`."""
        level = depth(node) - 1
        phi, total = 0.0, (rows * indicator(node, length)).sum(-1)
        for i, child in enumerate(node):
            if not isinstance(child, int):
                inner = -visit(child, (*path, i))
            elif include_self:
                inner = score(child, child, 0, i, i)
            else:
                inner = xp.full(query.shape[:-2], -np.inf)
            logits = [inner if i == j else score(child, d, level, i, j) for j, d in enumerate(node)]
            sharing[(*path, i)], log_total = softmax(xp, xp.stack(logits, -1))
            below = (rows * indicator(child, length)).sum(-1)
            share = below / where_positive(total, total, 1.0)
            phi = phi - where_positive(below, share * where_positive(below, log_total, 0.0), 0.0)
        return where_positive(total, phi, np.inf)  # without leaves that are left, there is nothing below

    phi = visit(nested, ())
    weights = 0.0

    def spread(node, path, mass):
        nonlocal weights
        for i, child in enumerate(node):
            share, row = sharing[(*path, i)], indicator(child, length)
            for j, other in enumerate(node):
                if i == j and not isinstance(child, int):
                    spread(child, (*path, i), mass * share[..., i])
                elif i != j or include_self:
                    weights = weights + spread_over(mass * share[..., j], row, g * indicator(other, length))

    spread(nested, (), xp.ones(query.shape[:-2], query.dtype))
    weights = weights + xp.zeros((*query.shape[:-1], length), query.dtype)
    return weights @ value, weights, phi - top


def causal_tree_attention(
    query, key, value, key_bias, nested, *, scale, include_self=True, sibling_bias=None, xp=jnp
):
    """(out, weights) of the causal form: one softmax a token over the means of earlier siblings of its ancestors."""
    length = query.shape[-2]
    _, g, _, key, value = key_weights(xp, key_bias, key, value)
    rows = {}

    def visit(node, met):
        """`met`: everything before the node at every level above, as (node, level, slot here, its slot)."""
        level = depth(node) - 1
        for i, child in enumerate(node):
            earlier = met + [(node[j], level, i, j) for j in range(i)]
            if isinstance(child, int):
                rows[child] = earlier + ([(child, level, i, i)] if include_self else [])
            else:
                visit(child, earlier)

    visit(nested, [])
    weights = xp.zeros((*query.shape[:-1], length), query.dtype)
    for row, blocks in rows.items():
        logits = []
        for node, level, i, j in blocks:
            mean, weight = weighted_mean(key, g * indicator(node, length))
            s = scale * (query[..., row, :] * mean).sum(-1) + log(weight)
            logits.append(s if sibling_bias is None else s + sibling_bias[level][..., i, j])
        if blocks:
            shares, _ = softmax(xp, xp.stack(logits, -1))
            for n, (node, *_) in enumerate(blocks):
                weights = weights + spread_over(
                    shares[..., n], indicator(row, length), g * indicator(node, length)
                )
    return weights @ value, weights


def heads_first(query, key, value, key_bias):
    """(B, T, N, H), grouped keys and a (B, T, N) bias as (B, N, T, …)."""
    groups = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    return (*(jnp.swapaxes(x, 1, 2) for x in (query, key, value)), jnp.moveaxis(key_bias, 2, 1))
