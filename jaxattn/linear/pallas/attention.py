"""Linear attention by the fused kernels for TPUs, forward and backward."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.core.pallas.choice import LANES
from jaxattn.core.pallas.layout import arrange, bias_gradient, bias_row, restore
from jaxattn.linear.pallas.fused import FusedHow, Kernels
from jaxattn.linear.pallas.plan import Plan, Tokens
from jaxattn.linear.pallas.projected import sum_over_sequences
from jaxattn.linear.pallas.sweep import causal_forward, segments_forward
from jaxattn.linear.pallas.sweep_gradient import causal_gradient, segments_gradient
from jaxattn.linear.pallas.whole import whole_keys, whole_queries
from jaxattn.linear.pallas.whole_gradient import whole_gradient
from jaxattn.linear.plan import Parameters
from jaxattn.linear.projection import Projection
from jaxattn.linear.segments import number_segments


def _plan(how: FusedHow, call: Call, projection: Projection) -> Plan:
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
    ids = None if call.segment_ids is None else number_segments(call.segment_ids[1])[:, None, None]
    return Tokens(
        arrange(call.query), arrange(call.key), arrange(call.value), bias_row(call.key_bias, call.key), ids
    )


def _project(how: FusedHow, parameters: Parameters) -> Projection:
    assert how.features.fused is not None
    projection = how.features.fused.project(parameters, how.features.by_head)
    return jax.tree.map(lambda x: x.astype(jnp.float32), projection)


def forward(how: FusedHow, keep: bool, parameters: Parameters, call: Call) -> tuple[Array, Any]:
    """The output and, to keep for the gradient, sums over keys."""
    projection = _project(how, parameters)
    plan, tokens = _plan(how, call, projection), _tokens(call)
    if call.is_causal or call.segment_ids is not None:
        sweep: Any = causal_forward if call.is_causal else segments_forward
        out, kept = sweep(plan, tokens, projection, keep)
        return restore(out, plan.value_width), kept
    whole = whole_keys(plan, tokens, projection)
    out = whole_queries(plan, tokens.query, projection, whole, tokens.value.dtype)
    return restore(out, plan.value_width), whole if keep else None


def gradient(
    how: FusedHow, learned: bool, parameters: Parameters, call: Call, kept: Any, grad: Array
) -> tuple[Parameters, Call]:
    """Cotangents of the parameters and the call from that of the output."""
    projection, pull = jax.vjp(partial(_project, how), parameters)
    plan = _plan(how, call, projection)
    pull_back: Any = whole_gradient if call.segment_ids is None else segments_gradient
    if call.is_causal:
        pull_back = causal_gradient
    of, of_projection = pull_back(plan, _tokens(call), projection, kept, arrange(grad), learned)
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


KERNELS = Kernels(forward, gradient)
