"""Sums over keys relative to the largest weight in them, for one head: adding keys, dividing, and the gradients.

Positive numbers are kept as value · e^scale. A key's weight is e^lw, with lw the log scale of its features plus its
key bias; sums over keys are held relative to a reference that is at least the largest lw in them, so that nothing
overflows, and that is a maximum over *earlier* keys only where attention is causal, so that nothing leaks.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


class State(NamedTuple):
    """Everything later queries need of the keys so far.

    total (F, V + 1): Σ_j e^(lw_j − top) φ_j [v_j, 1]; top (): the largest lw so far; segment (): the segment that
    the keys belong to, None without segments.
    """

    total: Array
    top: Array
    segment: Array | None


def with_one(value: Array) -> Array:
    """[v, 1]: the last column of a weighted sum is then the sum of the weights."""
    return jnp.concatenate([value, jnp.ones((*value.shape[:-1], 1), value.dtype)], axis=-1)


def ratio(a: Array, b: Array) -> Array:
    """e^(a − b) for a <= b, 0 where a is −inf (also where both are)."""
    return jnp.exp(a - jnp.where(a == -jnp.inf, 0, b))


def smallest(dtype: Any) -> float:
    """Sums of weights below this are taken for it: 1/x and its products must stay finite."""
    return float(jnp.finfo(dtype).tiny) ** 0.8


def divide(sums: Array) -> tuple[Array, Array]:
    """(Σ w v / Σ w, Σ w) of (..., V + 1) sums; 0 where nothing was summed."""
    value, weight = sums[..., :-1], sums[..., -1]
    floor = smallest(sums.dtype)
    divisor = jnp.where(jnp.abs(weight) < floor, floor, weight)
    return value / divisor[..., None], weight


def divide_gradient(grad: Array, out: Array, weight: Array) -> Array:
    """The cotangent of (..., V + 1) sums, from the cotangent of the quotient; 0 where nothing was summed."""
    nothing = jnp.abs(weight) < smallest(grad.dtype)
    inverse = jnp.where(nothing, 0, 1 / jnp.where(nothing, 1, weight))
    sums = jnp.concatenate([grad, -(grad * out).sum(axis=-1, keepdims=True)], axis=-1)
    return sums * inverse[..., None]


def add_keys(state: State, phi: Array, log_weight: Array, value: Array) -> State:
    """The state with a block of keys more, where order does not matter: phi (L, F), log_weight (L,), value (L, V)."""
    # A reference cancels in the quotient of the sums: it is a constant, to any order of derivative.
    top = lax.stop_gradient(jnp.maximum(state.top, log_weight.max()))
    update = phi.T @ (with_one(value) * ratio(log_weight, top)[:, None])
    return State(state.total * ratio(state.top, top) + update, top, None)


def keys_gradient(
    grad_total: Array, top: Array, phi: Array, log_weight: Array, value: Array
) -> tuple[Array, Array, Array]:
    """Cotangents of (phi, log_weight, value) from that of the total over all keys."""
    weighted = with_one(value) * ratio(log_weight, top)[:, None]
    grad_phi = weighted @ grad_total.T
    grad_sum = phi @ grad_total  # cotangent of e^lw [v, 1], but for the factor e^lw
    grad_log_weight = (weighted * grad_sum).sum(axis=-1)
    return grad_phi, grad_log_weight, grad_sum[:, :-1] * ratio(log_weight, top)[:, None]


def segmented_cummax(log_weight: Array, segments: Array) -> Array:
    """The largest log weight so far (along axis 0) of the same segment; segments are contiguous."""

    def later(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(a[1] == b[1], jnp.maximum(a[0], b[0]), b[0]), b[1]

    return lax.associative_scan(later, (log_weight, segments))[0]
