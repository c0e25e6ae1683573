"""Scalar weights between the tokens of one chunk, and between a chunk and a state, inside a kernel."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.pallas.products import as_column

# Below every finite log weight, and finite: e^(−∞ − LOWEST) is 0.
LOWEST = float(jnp.finfo(jnp.float32).min)


class Place(NamedTuple):
    """Of a state: the largest log weight in it (1, 1), and the segment of its keys (1, 1), which counts with ids."""

    top: Array
    segment: Array


class Seen(NamedTuple):
    """Weights for the queries of a chunk, none of which exceeds 1.

    within (C, C): of key j (row) for query i (column); states: (1, C) for each state, of it for query i.
    """

    within: Array
    states: list[Array]


class Step(NamedTuple):
    """From one state to the next by the keys of a chunk; no weight exceeds 1.

    keys (1, C): of key j; state (1, 1): of the state so far; place: of the next one.
    """

    keys: Array
    state: Array
    place: Place


def seen_by_queries(log_weight: Array, ids: Array | None, places: Sequence[Place], is_causal: bool) -> Seen:
    """Every query relative to the largest weight among the keys that it may see: it knows no other.

    Args:
        log_weight: (1, C), −inf for removed keys.
        ids: (1, C) the numbers of contiguous segments, or None.
        places: of the states that are seen besides the keys of the chunk.
        is_causal: whether a query sees the keys of the chunk up to itself only.
    """
    chunk = log_weight.shape[1]
    shape = (chunk, chunk)
    column = as_column(log_weight)
    seen = None if ids is None else as_column(ids) == ids
    if is_causal:
        order = lax.broadcasted_iota(jnp.int32, shape, 0) <= lax.broadcasted_iota(jnp.int32, shape, 1)
        seen = order if seen is None else order & seen
    assert seen is not None
    reference = jnp.where(seen, column, LOWEST).max(axis=0, keepdims=True)
    tops = [
        place.top if ids is None else jnp.where(ids == place.segment, place.top, LOWEST) for place in places
    ]
    for top in tops:
        reference = jnp.maximum(reference, top)
    within = jnp.where(seen, jnp.exp(column - reference), 0)
    states = [jnp.exp(top - reference) for top in tops]
    if ids is not None:
        states = [jnp.where(ids == place.segment, x, 0) for x, place in zip(states, places, strict=True)]
    return Seen(within, states)


def add_chunk(log_weight: Array, ids: Array | None, place: Place, reverse: bool = False) -> Step:
    """What becomes of a state, in the order of the tokens or in reverse; the arguments are as above."""
    segment, last_weight, last_top = place.segment, log_weight, place.top
    if ids is not None:
        # They do not fall.
        segment = ids.min(axis=1, keepdims=True) if reverse else ids.max(axis=1, keepdims=True)
        last_weight = jnp.where(ids == segment, log_weight, -jnp.inf)
        last_top = jnp.where(segment == place.segment, place.top, LOWEST)
    top = jnp.maximum(last_weight.max(axis=1, keepdims=True), last_top)
    keys, state = jnp.exp(last_weight - top), jnp.exp(last_top - top)
    if ids is not None:
        state = jnp.where(segment == place.segment, state, 0)
    return Step(keys, state, Place(top, segment))
