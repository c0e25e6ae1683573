"""Sums over keys relative to the largest weight in them, for one head: adding keys, dividing, and the gradients.

Positive numbers are kept as value · e^scale. A key's weight is e^lw, with lw the log scale of its features plus its
key bias; sums over keys are held relative to a reference that is at least the largest lw in them, so that nothing
overflows, and that is a maximum over *earlier* keys only where attention is causal, so that nothing leaks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


class Sums(NamedTuple):
    """Sums over keys, or cotangents of them: total (..., V) of weighted values, weight (...) of the weights.

    Apart, since a column more would make the width of products odd: 65 takes the time of 128 on a matrix unit.
    """

    total: Array
    weight: Array

    def joined(self) -> Array:
        """(..., V + 1), the weight as the last column."""
        return jnp.concatenate([self.total, self.weight[..., None]], axis=-1)


class SumsGradient(NamedTuple):
    """The cotangents factor · value of total and factor · delta of weight, for every query.

    value (..., V) comes from the caller, so its products with values are exact in bfloat16. Where sums are divided,
    delta is None: it is what makes the weighted mean of value · v + delta vanish, found by the products that need it,
    so that what cancels does so to the last bit.
    """

    value: Array
    factor: Array
    delta: Array | None

    def of_weight(self, sums: Array) -> Array:
        """delta, given the weighted sums of value · v."""
        return -sums * self.factor if self.delta is None else self.delta


class State(NamedTuple):
    """Everything later queries need of the keys so far.

    sums: Σ_j e^(lw_j − top) φ_j v_j (F, V) and Σ_j e^(lw_j − top) φ_j (F,); top (): the largest lw so far;
    segment (): the segment that the keys belong to, None without segments.
    """

    sums: Sums
    top: Array
    segment: Array | None


def product(spec: str, *operands: Array, precision: Any = None) -> Array:
    """An einsum accumulated in float32 (float64 for float64 operands), whatever the operands."""
    dtype = jnp.result_type(jnp.float32, *operands)
    return jnp.einsum(spec, *operands, precision=precision, preferred_element_type=dtype)


def total_of(x: Array, axis: int) -> Array:
    """The sum along an axis, accumulated likewise."""
    return x.sum(axis=axis, dtype=jnp.result_type(jnp.float32, x))


def plus(a: Any, b: Any) -> Any:
    """The sum of two pytrees."""
    return jax.tree.map(jnp.add, a, b)


def ratio(a: Array, b: Array) -> Array:
    """e^(a − b) for a <= b, 0 where a is −inf (also where both are)."""
    return jnp.exp(a - jnp.where(a == -jnp.inf, 0, b))


def smallest(dtype: Any) -> float:
    """Sums of weights below this are taken for it: 1/x and its products must stay finite."""
    return float(jnp.finfo(dtype).tiny) ** 0.8


def divide(sums: Sums) -> Array:
    """Σ w v / Σ w; 0 where nothing was summed."""
    floor = smallest(sums.weight.dtype)
    divisor = jnp.where(jnp.abs(sums.weight) < floor, floor, sums.weight)
    return sums.total / divisor[..., None]


def inverse_of(weight: Array) -> Array:
    """1 / Σ w; 0 where nothing was summed."""
    nothing = jnp.abs(weight) < smallest(weight.dtype)
    return jnp.where(nothing, 0, 1 / jnp.where(nothing, 1, weight))


def rescaled(sums: Sums, factor: Array) -> Sums:
    """The sums of every head (…, K, F, …) times a factor (…, K)."""
    return Sums(sums.total * factor[..., None, None], sums.weight * factor[..., None])


def merge(a: State, b: State) -> State:
    """The state of the keys of both, every array with leading axes before the head's own."""
    top = lax.stop_gradient(jnp.maximum(a.top, b.top))
    return State(plus(*(rescaled(x.sums, ratio(x.top, top)) for x in (a, b))), top, None)


def add_keys(state: State, phi: Array, log_weight: Array, value: Array) -> State:
    """The state with a block of keys more, where order does not matter: phi (L, F), log_weight (L,), value (L, V)."""
    # A reference cancels in the quotient of the sums: it is a constant, to any order of derivative.
    top = lax.stop_gradient(jnp.maximum(state.top, log_weight.max()))
    weighted = (phi * ratio(log_weight, top)[:, None]).astype(value.dtype)
    update = Sums(product("lf,lv->fv", weighted, value), total_of(weighted, 0))
    rescaled = jax.tree.map(lambda x: x * ratio(state.top, top), state.sums)
    return State(plus(rescaled, update), top, None)


def keys_gradient(
    grad: Sums, top: Array, phi: Array, log_weight: Array, value: Array
) -> tuple[Array, Array, Array]:
    """Cotangents of (phi, log_weight, value) from those of the sums over all keys."""
    factor = ratio(log_weight, top)[:, None]
    grad_phi = (product("lv,fv->lf", value, grad.total) + grad.weight) * factor
    grad_value = product("lf,fv->lv", phi.astype(value.dtype), grad.total) * factor
    return grad_phi, (phi * grad_phi).sum(axis=-1), grad_value


def segmented_cummax(log_weight: Array, segments: Array) -> Array:
    """The largest log weight so far (along axis 0) of the same segment; segments are contiguous."""

    def later(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(a[1] == b[1], jnp.maximum(a[0], b[0]), b[0]), b[1]

    return lax.associative_scan(later, (log_weight, segments))[0]
