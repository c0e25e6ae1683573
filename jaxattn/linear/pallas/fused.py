"""Fused kernels as one differentiable function: their own first derivative, and XLA's second."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.linear.chunked import any_perturbed, differentiable_attention, plain
from jaxattn.linear.padded import keys_like_queries
from jaxattn.linear.plan import FeatureFunctions, Parameters, choose_tiling
from jaxattn.linear.segments import Order, attend_segments, order_of_segments, with_order


class Kernels(NamedTuple):
    """Those of one platform, functions of a module.

    Attributes:
        forward: (how, whether to keep, parameters, call with contiguous segments) -> the output (B, T, K, G, V), what
            the gradient needs.
        gradient: (how, whether parameters are learned, parameters, call, kept, cotangent of the output) -> cotangents
            of the parameters and the call.
    """

    forward: Callable[..., tuple[Array, Any]]
    gradient: Callable[..., tuple[Parameters, Call]]


class FusedHow(NamedTuple):
    """The static part of a call: its kernels, its features, and tokens C a chunk."""

    kernels: Kernels
    features: FeatureFunctions
    chunk: int


def attend_fused(how: FusedHow, parameters: Parameters, call: Call) -> Array:
    """(B, T, K, G, V) weighted means, of a call in the form of `Call.with_own_sums`."""
    length, key_length = call.query.shape[1], call.key.shape[1]
    if call.is_causal and length != key_length:
        call = keys_like_queries(call.with_key_weights())
    if call.segment_ids is None:
        return _attend(how, list(parameters), call, None)
    if call.key_bias is not None:
        # Every row has an order of its own.
        bias = jnp.broadcast_to(call.key_bias, (call.key.shape[0], *call.key_bias.shape[1:]))
        call = call.replace(key_bias=bias)
    return _attend(how, list(parameters), call, order_of_segments(call.segment_ids[1]))


def _in_order(order: Order | None, run: Callable[[Any], tuple[Any, Any]], arrays: Any) -> tuple[Any, Any]:
    return run(arrays) if order is None else with_order(order, run, arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _forward(
    how: FusedHow, keep: bool, parameters: Parameters, call: Call, order: Order | None
) -> tuple[Array, Any]:
    return _in_order(order, partial(how.kernels.forward, how, keep, parameters), call)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradient(
    how: FusedHow,
    learned: bool,
    parameters: Parameters,
    call: Call,
    order: Order | None,
    kept: Any,
    grad: Array,
) -> tuple[Parameters, Call]:
    def run(arrays: tuple[Call, Array]) -> tuple[Call, Parameters]:
        call, grad = arrays
        return how.kernels.gradient(how, learned, parameters, call, kept, grad)[::-1]

    return _in_order(order, run, (call, grad))[::-1]


# Derivatives of a kernel are those of the XLA form, which is the same function: second derivatives, that is.


def _in_xla(how: FusedHow, parameters: Parameters, call: Call, **options: Any) -> Array:
    tiling = choose_tiling(None, call, "other")
    return attend_segments(call.with_key_weights(), how.features, parameters, tiling, **options)


@_forward.defjvp
def _(how: FusedHow, keep: bool, primals: Any, tangents: Any) -> Any:
    out, kept = _forward(how, keep, *primals)
    attend = partial(_in_xla, how, attend=differentiable_attention)
    _, of_out = jax.jvp(attend, primals[:2], tangents[:2])
    return (out, kept), (of_out.astype(out.dtype), jax.tree.map(jnp.zeros_like, kept))


@_gradient.defjvp
def _(how: FusedHow, learned: bool, primals: Any, tangents: Any) -> Any:
    (parameters, call, *_, grad), (of_parameters, of_call, *_, of_grad) = primals, tangents

    def gradient(parameters: Parameters, call: Call, grad: Array) -> Any:
        of_parameters, of_call = jax.vjp(partial(_in_xla, how), parameters, call)[1](grad)
        return of_parameters, of_call.replace(segment_ids=None)

    _, of = jax.jvp(gradient, (parameters, call, grad), (of_parameters, of_call, of_grad))
    return _gradient(how, learned, *primals), of


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: FusedHow, parameters: Parameters, call: Call, order: Order | None) -> Array:
    return _forward(how, False, parameters, call, order)[0]


def _attend_forward(how: FusedHow, parameters: Any, call: Any, order: Any) -> tuple[Array, Any]:
    learned = any_perturbed(parameters)
    parameters, call, order = plain((parameters, call, order))
    out, kept = _forward(how, True, parameters, call, order)
    return out, (learned, parameters, call, order, kept)


def _attend_backward(how: FusedHow, residuals: Any, grad: Any) -> tuple[Any, Call, None]:
    learned, parameters, call, order, kept = residuals
    if isinstance(grad, SymbolicZero):
        grad = jnp.zeros(grad.shape, grad.dtype)
    return *_gradient(how, learned is not None, parameters, call, order, kept, grad), None


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)
