"""Linear attention by the fused kernels, with a backward pass of its own."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.core.pallas.choice import LANES
from jaxattn.core.pallas.layout import arrange, bias_gradient, bias_row, restore
from jaxattn.linear.chunked import any_perturbed, differentiable_attention, plain
from jaxattn.linear.padded import attend_padded, keys_like_queries
from jaxattn.linear.pallas.causal import causal_forward
from jaxattn.linear.pallas.causal_gradient import causal_gradient
from jaxattn.linear.pallas.plan import Plan, Tokens
from jaxattn.linear.pallas.projected import sum_over_sequences
from jaxattn.linear.pallas.whole import whole_keys, whole_queries
from jaxattn.linear.pallas.whole_gradient import whole_gradient
from jaxattn.linear.plan import FeatureFunctions, Parameters, choose_tiling
from jaxattn.linear.projection import Projection


class _How(NamedTuple):
    """The static part of a call: its features, and tokens C a chunk."""

    features: FeatureFunctions
    chunk: int


def attend_fused(features: FeatureFunctions, chunk: int, parameters: Parameters, call: Call) -> Array:
    """(B, T, K, G, V) weighted means, of a call in the form of `Call.with_own_sums` with contiguous segments."""
    length, key_length = call.query.shape[1], call.key.shape[1]
    if call.is_causal and length != key_length:
        call = keys_like_queries(call.with_key_weights())
    return _attend(_How(features, chunk), list(parameters), call)


def _plan(how: _How, call: Call, projection: Projection) -> Plan:
    assert how.features.fused is not None
    kind, width = how.features.fused.kind, call.query.shape[-1]
    length, key_length = call.query.shape[1], call.key.shape[1]
    return Plan(
        kind=kind,
        width=width,
        value_width=call.value.shape[-1],
        groups=call.query.shape[3],
        num_features=kind.num_features(projection, width),
        length=length,
        key_length=key_length,
        chunk=min(how.chunk, -(-max(length, key_length) // LANES) * LANES),
    )


def _tokens(call: Call) -> Tokens:
    ids = call.segment_ids
    if ids is not None:
        changed = ids[1][:, 1:] != ids[1][:, :-1]
        ids = jnp.pad(jnp.cumsum(changed, axis=1), ((0, 0), (1, 0))).astype(jnp.float32)[:, None, None]
    return Tokens(
        arrange(call.query), arrange(call.key), arrange(call.value), bias_row(call.key_bias, call.key), ids
    )


def _project(how: _How, parameters: Parameters) -> Projection:
    assert how.features.fused is not None
    projection = how.features.fused.project(parameters, how.features.by_head)
    return jax.tree.map(lambda x: x.astype(jnp.float32), projection)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _forward(how: _How, keep: bool, parameters: Parameters, call: Call) -> tuple[Array, Any]:
    """The output and, to keep for the gradient, sums over keys."""
    projection = _project(how, parameters)
    plan, tokens = _plan(how, call, projection), _tokens(call)
    if call.is_causal:
        out, sums = causal_forward(plan, tokens, projection, keep)
        return restore(out, plan.value_width), sums
    whole = whole_keys(plan, tokens, projection)
    out = whole_queries(plan, tokens.query, projection, whole, tokens.value.dtype)
    return restore(out, plan.value_width), whole if keep else None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradient(
    how: _How, learned: bool, parameters: Parameters, call: Call, kept: Any, grad: Array
) -> tuple[Parameters, Call]:
    """Cotangents of the parameters and the call from that of the output."""
    projection, pull = jax.vjp(partial(_project, how), parameters)
    plan = _plan(how, call, projection)
    gradient = causal_gradient if call.is_causal else whole_gradient
    of, of_projection = gradient(plan, _tokens(call), projection, kept, arrange(grad), learned)
    if learned:
        (of_parameters,) = pull(sum_over_sequences(of_projection, projection))
    else:
        of_parameters = jax.tree.map(jnp.zeros_like, parameters)
    return of_parameters, call.replace(
        query=restore(of.query, plan.width),
        key=restore(of.key, plan.width),
        value=restore(of.value, plan.value_width),
        key_bias=bias_gradient(call.key_bias, of.bias),
        segment_ids=None,
    )


# Derivatives of a kernel are those of the XLA form, which is the same function: second derivatives, that is.


def _in_xla(how: _How, parameters: Parameters, call: Call, **options: Any) -> Array:
    tiling = choose_tiling(None, call, "other")
    return attend_padded(call.with_key_weights(), how.features, parameters, tiling, **options)


@_forward.defjvp
def _(how: _How, keep: bool, primals: Any, tangents: Any) -> Any:
    out, kept = _forward(how, keep, *primals)
    attend = partial(_in_xla, how, attend=differentiable_attention)
    _, of_out = jax.jvp(attend, primals, tangents)
    return (out, kept), (of_out.astype(out.dtype), jax.tree.map(jnp.zeros_like, kept))


@_gradient.defjvp
def _(how: _How, learned: bool, primals: Any, tangents: Any) -> Any:
    (parameters, call, _, grad), (of_parameters, of_call, _, of_grad) = primals, tangents

    def gradient(parameters: Parameters, call: Call, grad: Array) -> Any:
        of_parameters, of_call = jax.vjp(partial(_in_xla, how), parameters, call)[1](grad)
        return of_parameters, of_call.replace(segment_ids=None)

    _, of = jax.jvp(gradient, (parameters, call, grad), (of_parameters, of_call, of_grad))
    return _gradient(how, learned, *primals), of


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: _How, parameters: Parameters, call: Call) -> Array:
    return _forward(how, False, parameters, call)[0]


def _attend_forward(how: _How, parameters: Any, call: Any) -> tuple[Array, Any]:
    learned = any_perturbed(parameters)
    parameters, call = plain((parameters, call))
    out, kept = _forward(how, True, parameters, call)
    return out, (learned, parameters, call, kept)


def _attend_backward(how: _How, residuals: Any, grad: Any) -> tuple[Any, Call]:
    learned, parameters, call, kept = residuals
    if isinstance(grad, SymbolicZero):
        grad = jnp.zeros(grad.shape, grad.dtype)
    return _gradient(how, learned is not None, parameters, call, kept, grad)


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)
