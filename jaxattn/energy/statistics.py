"""Count, mean and spread of every prefix, in parallel and accurate in float32."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import is_known
from jaxattn.core.padding import repeat_last
from jaxattn.core.pytree import serializable
from jaxattn.core.sequence import exclusive_scan

RADIX = 8
MIN_VARIANCE = 1e-12  # sigma is floored at 1e-6
# and at this share of the mean: layers give equal tokens energies that differ by tens of roundings
MIN_RATIO = 64 * float(jnp.finfo(jnp.float32).eps)


@serializable
class Statistics(NamedTuple):
    """Count, one member, mean relative to it and summed squared deviation of a set of numbers.

    The mean is kept relative to a member of the set (`origin`), because energies of 10,000 ± 1 have a float32
    mean that is itself off by a thousandth of their spread.
    """

    count: Float[Array, "*shape"]  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    origin: Float[Array, "*shape"]
    mean: Float[Array, "*shape"]
    m2: Float[Array, "*shape"]


def empty_statistics(shape: tuple[int, ...]) -> Statistics:
    """Statistics of nothing, the identity of `merge`."""
    zeros = jnp.zeros(shape, jnp.float32)
    return Statistics(zeros, zeros, zeros, zeros)


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


# Jitted even if the caller is not: op by op, the scan would be about a hundred small programs.
@jax.jit
def prefix_statistics(
    x: Float[Array, "B S N"], valid: Bool[Array, "B S N"], segment_ids: Int[Array, "B S"] | None = None
) -> Statistics:
    """Statistics over the valid positions <= j, for every j; they restart wherever `segment_ids` changes.

    `x` must be finite where it is not valid. Work and memory O(S N), depth O(log S).
    """
    if x.size == 0:
        return empty_statistics(x.shape)
    # The gradient goes through `mean` alone (0 + x − origin): normalised values do not depend on the origin.
    # The barrier keeps the compiler from constant-folding the argmax of a mask of ones.
    first = jnp.argmax(lax.optimization_barrier(valid), axis=1, keepdims=True)
    origin = lax.stop_gradient(jnp.take_along_axis(x, first, axis=1))
    each = Statistics(
        valid.astype(jnp.float32),
        jnp.broadcast_to(origin, x.shape),
        jnp.where(valid, x - origin, 0),
        jnp.zeros_like(x),
    )
    run = None if segment_ids is None else jnp.cumsum(_run_starts(segment_ids), axis=1)
    merged = _inclusive if is_known(x.shape[1]) else _one_by_one
    statistics = merged(each, run)
    # Before the first valid position the statistics are empty, the identity of `merge`.
    return statistics._replace(origin=jnp.where(statistics.count > 0, statistics.origin, 0))


def _inclusive(each: Statistics, run: Int[Array, "B S"] | None) -> Statistics:
    """Merges, for every j, the entries k <= j of the same run.

    Chunks of RADIX entries: all prefixes inside a chunk at once as sums over pairs, the chunks' totals by recursion,
    then one merge. Against a scan by halves that is a quarter of the levels and of the time to compile.
    """
    batch, length, heads = each.mean.shape
    if length <= RADIX:
        return _prefixes(each, _same_run(run, run) & jnp.tri(length, dtype=bool))
    chunks = -(-length // RADIX)

    def chunked(array: Array) -> Array:
        array = repeat_last(array, chunks * RADIX - length, axis=1)
        return array.reshape(batch, chunks, RADIX, *array.shape[2:])

    run = None if run is None else chunked(run)
    inside = _prefixes(jax.tree.map(chunked, each), _same_run(run, run) & jnp.tri(RADIX, dtype=bool))
    totals = _inclusive(jax.tree.map(lambda s: s[:, :, -1], inside), None if run is None else run[:, :, -1])
    # A chunk continues the total of all chunks before it; the first one, or one in a new run, continues nothing.
    before = jax.tree.map(lambda s: jnp.pad(s[:, :-1], [(0, 0), (1, 0), (0, 0)])[:, :, None], totals)
    if run is not None:
        last = jnp.pad(run[:, :-1, -1], [(0, 0), (1, 0)])
        before = jax.tree.map(lambda s: jnp.where((run == last[..., None])[..., None], s, 0), before)
    merged = merge(before, inside)
    return jax.tree.map(lambda s: s.reshape(batch, -1, heads)[:, :length], merged)


def _one_by_one(each: Statistics, run: Int[Array, "B S"] | None) -> Statistics:
    """`_inclusive` in S steps, for a length that is a symbol."""

    def step(before: tuple[Statistics, Any], entry: tuple[Statistics, Any]) -> Any:
        (statistics, last), (one, run) = before, entry
        if run is not None:
            statistics = jax.tree.map(lambda s: jnp.where((run == last)[:, None], s, 0), statistics)
        merged = merge(statistics, one)
        return (merged, run), merged

    entries = jax.tree.map(lambda s: jnp.moveaxis(s, 1, 0), (each, run))
    start = jax.tree.map(lambda s: jnp.zeros_like(s[0]), entries)
    return jax.tree.map(lambda s: jnp.moveaxis(s, 0, 1), lax.scan(step, start, entries)[1])


def _same_run(run_j: Array | None, run_k: Array | None) -> Array:
    if run_j is None or run_k is None:
        return jnp.ones((), bool)
    return run_j[..., :, None] == run_k[..., None, :]


@jax.checkpoint  # pairs are cheap to recompute, and RADIX times as large as what they are formed from
def _prefixes(each: Statistics, member: Bool[Array, "*B R R"]) -> Statistics:
    """For every j, the statistics of the union of all sets k with member[j, k]; all share one origin."""
    member = member[..., None]

    def total(x: Array) -> Array:
        return jnp.where(member, x[..., None, :, :], 0).sum(axis=-2)

    count = total(each.count)
    mean = total(each.count * each.mean) / jnp.maximum(count, 1)
    # m2 is least at the mean, so its gradient through the mean is exactly 0 and need not be computed.
    deviation = each.mean[..., None, :, :] - lax.stop_gradient(mean)[..., :, None, :]
    spread = each.m2[..., None, :, :] + each.count[..., None, :, :] * jnp.square(deviation)
    return Statistics(count, each.origin, mean, jnp.where(member, spread, 0).sum(axis=-2))


def run_statistics(prefix: Statistics, segment_ids: Int[Array, "B S"] | None = None) -> Statistics:
    """Statistics over the whole run that position j belongs to, from the `prefix_statistics`."""
    if segment_ids is None:
        return jax.tree.map(lambda s: s[:, -1:], prefix)
    length = segment_ids.shape[1]
    starts = _run_starts(segment_ids)
    is_end = jnp.concatenate([starts[:, 1:], jnp.ones_like(starts[:, :1])], axis=1)
    end = lax.cummin(jnp.where(is_end, jnp.arange(length), length), axis=1, reverse=True)
    return jax.tree.map(lambda s: jnp.take_along_axis(s, end[..., None], axis=1), prefix)


def continue_from_devices(
    prefix: Statistics, segment_ids: Int[Array, "B S"] | None, axis_name: str
) -> Statistics:
    """The `prefix_statistics` of tokens that continue those of the devices before; every segment is one run."""
    own = jax.tree.map(lambda s: s[:, -1], prefix)
    empty = empty_statistics(own.mean.shape)
    if segment_ids is None:
        before = exclusive_scan(merge, empty, own, axis_name)
        return merge(jax.tree.map(lambda s: s[:, None], before), prefix)
    before, segment = exclusive_scan(merge, empty, own, axis_name, segment=segment_ids[:, -1])
    same = (segment_ids == segment[:, None])[..., None]
    return merge(jax.tree.map(lambda s: jnp.where(same, s[:, None], 0), before), prefix)


def standardize(x: Float[Array, "*#shape"], statistics: Statistics) -> Float[Array, "..."]:
    """(x − mean)/sigma, broadcasting; 0 where fewer than two numbers were seen.

    The gradient is 0 there and wherever the floor on sigma applies: z is then a step function of rounding errors (two
    equal numbers, perturbed slightly, have z = ±1), and its slope of 1e6 carries no information.
    """
    variance = statistics.m2 / jnp.maximum(statistics.count, 1)
    mean = lax.stop_gradient(statistics.origin + statistics.mean)
    least = jnp.maximum(MIN_VARIANCE, jnp.square(MIN_RATIO * mean))
    # The floor is inside the root: sqrt has no finite gradient at 0.
    sigma = jnp.sqrt(jnp.maximum(variance, least))
    z = ((x - statistics.origin) - statistics.mean) / sigma
    z = jnp.where(variance > least, z, lax.stop_gradient(z))
    return jnp.where(statistics.count > 1, z, 0)


def _run_starts(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """True at the first position of every run of equal ids."""
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.concatenate([jnp.ones_like(segment_ids[:, :1], bool), changed], axis=1)
