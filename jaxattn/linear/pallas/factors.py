"""Scalar weights between the tokens of one chunk, and between a chunk and the state before it, inside a kernel."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.pallas.products import as_column

# Below every finite log weight, and finite: e^(−∞ − LOWEST) is 0.
LOWEST = float(jnp.finfo(jnp.float32).min)


class Place(NamedTuple):
    """Of a state: the largest log weight in it (1, 1), and the segment of its keys (1, 1) if there are segments."""

    top: Array
    segment: Array | None


class Factors(NamedTuple):
    """Weights, none of which exceeds 1.

    within (C, C): of key j (row) for query i (column); before (1, C): of the state for query i; after (1, C): of
    key j for the state after the chunk; between (1, 1): of the state for that one; place: its own.
    """

    within: Array
    before: Array
    after: Array
    between: Array
    place: Place


def causal_factors(log_weight: Array, ids: Array | None, place: Place) -> Factors:
    """Every query relative to the largest weight among keys up to itself: it knows no other.

    Args:
        log_weight: (1, C), −inf for removed keys.
        ids: (1, C) the numbers of contiguous segments, or None.
        place: of the state before the chunk.
    """
    chunk = log_weight.shape[1]
    shape = (chunk, chunk)
    seen = lax.broadcasted_iota(jnp.int32, shape, 0) <= lax.broadcasted_iota(jnp.int32, shape, 1)
    if ids is not None:
        seen &= as_column(ids) == ids
    column = as_column(log_weight)
    earlier = place.top if ids is None else jnp.where(ids == place.segment, place.top, LOWEST)
    reference = jnp.maximum(jnp.where(seen, column, LOWEST).max(axis=0, keepdims=True), earlier)
    within = jnp.where(seen, jnp.exp(column - reference), 0)
    before = jnp.exp(earlier - reference)
    last_weight, last_top, segment = log_weight, place.top, None
    if ids is not None:
        segment = ids.max(axis=1, keepdims=True)  # they do not fall
        before = jnp.where(ids == place.segment, before, 0)
        last_weight = jnp.where(ids == segment, log_weight, -jnp.inf)
        last_top = jnp.where(segment == place.segment, place.top, LOWEST)
    top = jnp.maximum(last_weight.max(axis=1, keepdims=True), last_top)
    after, between = jnp.exp(last_weight - top), jnp.exp(last_top - top)
    if ids is not None:
        between = jnp.where(segment == place.segment, between, 0)
    return Factors(within, before, after, between, Place(top, segment))
