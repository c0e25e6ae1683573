"""Hierarchical self-attention over uniform trees with the scores of all pairs of nodes of a level, for float64."""

import jax
import jax.numpy as jnp
import numpy as np


def softmax(logits):
    """(weights, log of the sum) over the last axis; 0 and −inf where all are −inf."""
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    powers = jnp.exp(logits - jnp.where(top > -jnp.inf, top, 0))
    total = powers.sum(-1, keepdims=True)
    safe = jnp.where(total > 0, total, 1)
    found = jnp.where(total > 0, jnp.log(safe) + jnp.where(top > -jnp.inf, top, 0), -jnp.inf)
    return powers / safe, found[..., 0]


def uniform_tree_attention(query, key, value, key_bias, branching, *, scale, is_causal, include_self):
    """(T, V) of one head: query and key (T, H), value (T, V), key_bias (T,)."""
    length, widths = len(query), np.cumprod((1, *branching))
    place = [np.arange(length) // width for width in widths]  # of the ancestor of every token, by level
    removed = key_bias == -jnp.inf
    key, value, averaged = (jnp.where(removed[:, None], 0, x) for x in (key, value, query))
    levels = []
    for at in place:
        member = jnp.asarray(at == np.arange(at[-1] + 1)[:, None])  # (nodes, T)
        share, log_weight = softmax(jnp.where(member, key_bias, -jnp.inf))
        kept = jnp.where(member & ~removed, 1.0, 0.0)
        count = kept.sum(1)
        mean = (kept / jnp.maximum(count, 1)[:, None]) @ averaged
        levels.append((share @ key, share @ value, log_weight, mean, count))

    if is_causal:
        logits, values = [], []
        for level, (mean_key, mean_value, log_weight, *_) in enumerate(levels[:-1]):
            node, own = np.arange(len(log_weight)), place[level][:, None]
            seen = (node // branching[level] == own // branching[level]) & (node < own)
            if level == 0 and include_self:
                seen |= node == own
            logits.append(jnp.where(seen, scale * query @ mean_key.T + log_weight, -jnp.inf))
            values.append(mean_value)
        return softmax(jnp.concatenate(logits, 1))[0] @ jnp.concatenate(values)

    sharing, own = [], None
    for level, (mean_key, mean_value, log_weight, mean, count) in enumerate(levels[:-1]):
        parent, itself = np.arange(len(count)) // branching[level], np.eye(len(count), dtype=bool)
        logits = scale * (mean if level else query) @ mean_key.T + log_weight
        logits = jnp.where(parent == parent[:, None], logits, -jnp.inf)
        if level:
            logits = jnp.where(itself, own[:, None], logits)
        elif not include_self:
            logits = jnp.where(itself, -jnp.inf, logits)
        weights, total = softmax(logits)
        above = levels[level + 1][4]
        terms = jnp.where(count > 0, count * jnp.where(count > 0, total, 0), 0)
        own = jax.ops.segment_sum(terms, parent, len(above)) / jnp.maximum(above, 1)
        own = jnp.where(above > 0, own, -jnp.inf)
        spent = (jnp.where(itself, 0, weights) if level else weights) @ mean_value
        sharing.append((parent, jnp.diagonal(weights), spent))
    out, mass = jnp.zeros((1, value.shape[1]), value.dtype), jnp.ones(1, value.dtype)
    for parent, inside, spent in reversed(sharing):
        out, mass = out[parent] + mass[parent][:, None] * spent, mass[parent] * inside
    return out
