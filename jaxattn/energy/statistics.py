"""Count, mean and spread of every prefix, in parallel and accurate in float32."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import is_known
from jaxattn.core.pytree import serializable
from jaxattn.core.sequence import exclusive_scan

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


def kept(x: Array, valid: Bool[Array, "..."] | None, fill: float = 0.0) -> Array:
    """x where `valid`, everywhere if that is None, and `fill` elsewhere."""
    return x if valid is None else jnp.where(valid, x, fill)


# Jitted even if the caller is not: op by op, the sums would be dozens of small programs.
@jax.jit
def prefix_statistics(
    x: Float[Array, "B S N"], valid: Bool[Array, "B S N"] | None, segment_ids: Int[Array, "B S"] | None = None
) -> Statistics:
    r"""Statistics over the valid positions <= j, for every j; they restart wherever `segment_ids` changes.

    Squared deviations are prefix sums of terms none of which is negative,

    $$ m2_j = \sum_{k \le j} (x_k - \mu_k)^2 \frac{n_k}{\max(n_k - 1, 1)}. $$

    All positions are valid if that is None; `x` must be finite where it is not. Work and memory O(S N), depth
    O(log S).

    Reference: Welford, Note on a method for calculating corrected sums of squares and products, 1962.
    """
    if x.size == 0:
        return empty_statistics(x.shape)
    run = None if segment_ids is None else jnp.cumsum(_run_starts(segment_ids), axis=1)
    if valid is None and run is None:
        count = 1 + lax.broadcasted_iota(jnp.float32, x.shape, 1)
    else:
        count = _prefix_sums(kept(jnp.ones_like(x), valid), run)
    # The gradient goes through `mean` alone (0 + x − origin): normalised values do not depend on the origin.
    origin = x[:, :1]
    if valid is not None:
        origin = jnp.take_along_axis(x, jnp.argmax(valid, axis=1, keepdims=True), axis=1)
    origin = kept(lax.stop_gradient(jnp.broadcast_to(origin, x.shape)), None if valid is None else count > 0)
    deviation = kept(x - origin, valid)
    mean = _prefix_sums(deviation, run) / jnp.maximum(count, 1)
    squares = kept(jnp.square(deviation - mean), valid)
    m2 = _prefix_sums(squares * (count / jnp.maximum(count - 1, 1)), run)
    return Statistics(count, origin, mean, m2)


def _prefix_sums(x: Float[Array, "B S N"], run: Int[Array, "B S"] | None) -> Float[Array, "B S N"]:
    """For every j, the sum of the entries k <= j of the same run."""
    if run is None:
        return lax.cumsum(x, axis=1)

    def later(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(a[1] == b[1], a[0], 0) + b[0], b[1]

    pairs = x, jnp.broadcast_to(run[..., None], x.shape)
    if is_known(x.shape[1]):
        return lax.associative_scan(later, pairs, axis=1)[0]

    def step(before: tuple[Array, Array], entry: tuple[Array, Array]) -> Any:
        after = later(before, entry)
        return after, after[0]

    entries = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), pairs)
    start = jax.tree.map(lambda a: jnp.zeros_like(a[0]), entries)
    return jnp.moveaxis(lax.scan(step, start, entries)[1], 0, 1)


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


class Scale(NamedTuple):
    """What numbers are standardised by: origin and mean of `Statistics`; inverse, 1/sigma, or 0 where fewer than two
    numbers were seen; moves, whether sigma is above its floor, so that the result has a gradient."""

    origin: Float[Array, "*shape"]
    mean: Float[Array, "*shape"]
    inverse: Float[Array, "*shape"]
    moves: Bool[Array, "*shape"]


def scale_of(statistics: Statistics) -> Scale:
    """1/sigma of every set, with the floor on sigma."""
    variance = statistics.m2 / jnp.maximum(statistics.count, 1)
    mean = lax.stop_gradient(statistics.origin + statistics.mean)
    least = jnp.maximum(MIN_VARIANCE, jnp.square(MIN_RATIO * mean))
    # The floor is inside the root, which has no finite gradient at 0.
    inverse = jnp.where(statistics.count > 1, lax.rsqrt(jnp.maximum(variance, least)), 0)
    return Scale(statistics.origin, statistics.mean, inverse, variance > least)


def standardize(x: Float[Array, "*#shape"], scale: Scale) -> Float[Array, "..."]:
    """(x − mean)/sigma, broadcasting; 0 where fewer than two numbers were seen.

    The gradient is 0 there and wherever the floor on sigma applies: z is then a step function of rounding errors (two
    equal numbers, perturbed slightly, have z = ±1), and its slope of 1e6 carries no information.
    """
    deviation = (x - scale.origin) - scale.mean
    return jnp.where(scale.moves, deviation, lax.stop_gradient(deviation)) * scale.inverse


def _run_starts(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """True at the first position of every run of equal ids."""
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.concatenate([jnp.ones_like(segment_ids[:, :1], bool), changed], axis=1)
