"""One chunk of one head as it comes into a kernel: padding zeroed, features made."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.pallas.layout import load
from jaxattn.linear.pallas.features import Pull, make_features
from jaxattn.linear.pallas.plan import Plan, Tokens
from jaxattn.linear.projection import Projection


class Keys(NamedTuple):
    """phi (F, C) float32 and its transpose, log_weight (1, C), −inf for removed keys, and value (V, C)."""

    phi: Array
    pull: Pull
    log_weight: Array
    value: Array


def valid_tokens(plan: Plan, n: Any, length: int) -> Array | None:
    """(1, C) bool: which tokens of chunk n there are; None if all."""
    if length % plan.chunk == 0:
        return None
    return n * plan.chunk + lax.broadcasted_iota(jnp.int32, (1, plan.chunk), 1) < length


def read_keys(plan: Plan, tokens: Tokens, projection: Projection, n: Any, learned: bool) -> Keys:
    """Keys and values of chunk n, those that are removed or padding zeroed: what lies there may be NaN."""
    valid = valid_tokens(plan, n, plan.key_length)
    bias = None if tokens.bias is None else tokens.bias[...]
    kept = valid
    if bias is not None:
        kept = bias > -jnp.inf if valid is None else valid & (bias > -jnp.inf)
    key, value = load(tokens.key, plan.width), load(tokens.value, plan.value_width)
    if kept is not None:
        key, value = jnp.where(kept, key, 0), jnp.where(kept, value, 0)
    arrays = jax.tree.map(lambda ref: ref[...], projection)
    phi, scale, pull = make_features(plan.kind, arrays.key, arrays.offset, arrays.norm, key, learned)
    if bias is not None:
        scale += bias
    return Keys(phi, pull, scale if kept is None else jnp.where(kept, scale, -jnp.inf), value)


def read_ids(plan: Plan, tokens: Tokens, n: Any) -> Array | None:
    """(1, C) numbers of segments, padding being the last one; None without segments."""
    if tokens.ids is None:
        return None
    ids, valid = tokens.ids[...], valid_tokens(plan, n, plan.length)
    return ids if valid is None else jnp.where(valid, ids, plan.length)


def read_query(
    plan: Plan, tokens: Tokens, projection: Projection, n: Any, g: int, learned: bool
) -> tuple[Array, Pull]:
    """Features (F, C) of queries of chunk n and group g, and their transpose."""
    x = read(plan, tokens.query, plan.width, n, g)
    arrays = jax.tree.map(lambda ref: ref[...], projection)
    phi, _, pull = make_features(plan.kind, arrays.query, arrays.offset, None, x, learned)
    return phi, pull


def read(plan: Plan, ref: Any, width: int, n: Any, g: int) -> Array:
    """(width, C) of what there is for every query, padding zeroed."""
    x, valid = load(ref, width, (g,)), valid_tokens(plan, n, plan.length)
    return x if valid is None else jnp.where(valid, x, 0)
