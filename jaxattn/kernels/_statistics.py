"""Count, mean and spread of every prefix, by a parallel scan that stays accurate in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

MIN_VARIANCE = 1e-12  # sigma is floored at 1e-6


class Statistics(NamedTuple):
    """Of a set of numbers: how many, one of them, the mean measured from it, and the summed squared deviation.

    The mean is kept relative to a member of the set (`origin`), because energies of 10,000 ± 1 have a float32
    mean that is itself off by a thousandth of their spread.
    """

    count: Float[Array, "*shape"]
    origin: Float[Array, "*shape"]
    mean: Float[Array, "*shape"]
    m2: Float[Array, "*shape"]


def empty_statistics(shape: tuple[int, ...]) -> Statistics:
    """Statistics of nothing, the identity of `merge`."""
    return Statistics(*(jnp.zeros(shape, jnp.float32) for _ in Statistics._fields))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of the union of two disjoint sets; associative, and each may be empty.

    Reference: Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 2.1.
    """
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1)
    any_a = a.count > 0
    delta = jnp.where(any_a & (b.count > 0), (b.origin - a.origin) + (b.mean - a.mean), 0)
    return Statistics(
        count,
        jnp.where(any_a, a.origin, b.origin),
        jnp.where(any_a, a.mean + delta * share, b.mean),
        a.m2 + b.m2 + jnp.square(delta) * a.count * share,
    )


def prefix_statistics(
    x: Float[Array, "B S N"], valid: Bool[Array, "B S N"], segment_ids: Int[Array, "B S"] | None = None
) -> Statistics:
    """Statistics over the valid positions <= j, for every j; they restart wherever `segment_ids` changes.

    `x` must be finite where it is not valid. Memory and work O(S N), depth O(log S).
    """
    # The gradient goes through `mean` alone (0 + x − x): normalised values do not depend on the origin.
    origin = lax.stop_gradient(x)
    each = Statistics(
        valid.astype(jnp.float32),
        jnp.where(valid, origin, 0),
        jnp.where(valid, x - origin, 0),
        jnp.zeros_like(x),
    )
    if segment_ids is None:
        return lax.associative_scan(merge, each, axis=1)

    def merge_runs(a: tuple[Array, Statistics], b: tuple[Array, Statistics]) -> tuple[Array, Statistics]:
        restart = b[0]
        merged = jax.tree.map(lambda m, s: jnp.where(restart, s, m), merge(a[1], b[1]), b[1])
        return a[0] | restart, merged

    return lax.associative_scan(merge_runs, (_run_starts(segment_ids)[..., None], each), axis=1)[1]


def run_statistics(prefix: Statistics, segment_ids: Int[Array, "B S"] | None = None) -> Statistics:
    """Statistics over the whole run that position j belongs to, from the `prefix_statistics`."""
    if segment_ids is None:
        return jax.tree.map(lambda s: s[:, -1:], prefix)
    length = segment_ids.shape[1]
    starts = _run_starts(segment_ids)
    is_end = jnp.concatenate([starts[:, 1:], jnp.ones_like(starts[:, :1])], axis=1)
    end = lax.cummin(jnp.where(is_end, jnp.arange(length), length), axis=1, reverse=True)
    return jax.tree.map(lambda s: jnp.take_along_axis(s, end[..., None], axis=1), prefix)


def standardize(x: Float[Array, "*#shape"], statistics: Statistics) -> Float[Array, "..."]:
    """(x − mean)/sigma, broadcasting; 0 where fewer than two numbers were seen.

    The gradient is 0 there and wherever the floor under sigma binds: z is then a step function of rounding
    (two equal numbers, moved by a hair, have z = ±1), and its slope of 1e6 would be one batch's accident.
    """
    variance = statistics.m2 / jnp.maximum(statistics.count, 1)
    # The floor under the root, not above it: sqrt has no gradient at 0.
    sigma = jnp.sqrt(jnp.maximum(variance, MIN_VARIANCE))
    z = ((x - statistics.origin) - statistics.mean) / sigma
    z = jnp.where(variance > MIN_VARIANCE, z, lax.stop_gradient(z))
    return jnp.where(statistics.count > 1, z, 0)


def _run_starts(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """True at the first position of every run of equal ids."""
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.concatenate([jnp.ones_like(segment_ids[:, :1], bool), changed], axis=1)
