"""Causal linear attention as sweeps over the tokens: one forward, and forward again and three more backward."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.linear.mosaic_gpu.chunk import APART, CHUNK, Operands, widen
from jaxattn.linear.mosaic_gpu.features import make_features
from jaxattn.linear.mosaic_gpu.sweep import sweep
from jaxattn.linear.padded import pad_tokens
from jaxattn.linear.pallas.factors import LOWEST
from jaxattn.linear.pallas.fused import FusedHow, Kernels
from jaxattn.linear.plan import FeatureFunctions, Parameters
from jaxattn.linear.segments import number_segments
from jaxattn.linear.sums import inverse_of, segmented_cummax


def forward(how: FusedHow, keep: bool, parameters: Parameters, call: Call) -> tuple[Array, None]:
    """The output; nothing is kept for the gradient but the arguments."""
    out, _ = sweep(_narrow(_operands(how.features, parameters, call)), divided=True)
    *tokens, heads, groups = call.query.shape[:4]
    return out[:, : tokens[1], :, : call.value.shape[3]].reshape(*tokens, heads, groups, -1), None


def gradient(
    how: FusedHow, learned: bool, parameters: Parameters, call: Call, kept: None, grad: Array
) -> tuple[Parameters, Call]:
    """Cotangents of the parameters and the call from that of the output.

    With 1/d_i the inverse of the sum of the weights of query i, g_i the cotangent of its output over d_i and
    δ_i = −g_i · out_i, a pair's product has the cotangent e^(weight_j − reference_i) (g_i · v_j + δ_i): the
    cotangents of queries, keys and values are sweeps themselves, the latter two from the last token to the first.
    """
    x, pull = jax.vjp(partial(_operands, how.features), parameters, call)
    query, key, value, weight, reference, segment = _narrow(x)[:6]
    out, inverse = sweep(_narrow(x), divided=True, dtype=jnp.float32)
    grad = grad.reshape(*grad.shape[:2], -1, grad.shape[-1])
    grad = widen(jnp.pad(grad, ((0, 0), (0, value.shape[1] - grad.shape[1]), (0, 0), (0, 0))))
    grad = (grad * jnp.moveaxis(inverse, 1, 2)[..., None]).astype(value.dtype)
    delta = -jnp.moveaxis((grad * out).sum(axis=-1), 1, 2)
    (of_query,) = sweep(Operands(grad, value, key, weight, reference, segment, delta))
    back = -reference, -weight, None if segment is None else -segment
    (of_key,) = sweep(Operands(value, grad, query, *back, key_term=delta), reverse=True)
    (of_value,) = sweep(Operands(key, query, grad, *back), reverse=True)

    def of_group(x: Array) -> Array:
        return x.reshape(*x.shape[:2], key.shape[2], -1, x.shape[-1]).sum(axis=3, dtype=jnp.float32)

    of_key, of_value = of_group(of_key), of_group(of_value)
    of_weight = jnp.moveaxis((of_key * key).sum(axis=-1), 1, 2)
    # The length of a query's features changes nothing: what rounding left of a gradient along them is taken out.
    wide = x.query.astype(jnp.float32)
    along = (wide * of_query).sum(axis=-1) * inverse_of(jnp.square(wide).sum(axis=-1))
    of_query = of_query - wide * along[..., None]
    of_parameters, of_call = pull(
        jax.tree.map(jnp.zeros_like, x)._replace(
            query=of_query.astype(x.query.dtype),
            key=of_key.astype(x.key.dtype),
            value=of_value.astype(value.dtype),
            weight=of_weight,
        )
    )
    return of_parameters, of_call.replace(segment_ids=None)


def _operands(features: FeatureFunctions, parameters: Parameters, call: Call) -> Operands:
    """Of the sweep that gives the output, its features not rounded: query heads apart, widths and length padded."""
    call = call.with_key_weights()
    length = -(-call.query.shape[1] // CHUNK) * CHUNK
    call = pad_tokens(call, length, length)
    query, key, scale = make_features(features, parameters, call)
    weight = scale + jnp.moveaxis(call.key_bias[..., 0], 1, 2)
    if call.segment_ids is None:
        top, segment = lax.cummax(weight, axis=2), None
    else:
        numbers = number_segments(call.segment_ids[1])
        top = jax.vmap(jax.vmap(segmented_cummax, (0, None)))(weight, numbers)
        segment = APART * numbers[:, None]
    # The largest log weight so far: it cancels in the quotient, a constant.
    reference = lax.stop_gradient(jnp.maximum(top, LOWEST))
    return Operands(query, key, widen(call.value), weight, reference, segment)


def _narrow(x: Operands) -> Operands:
    return x._replace(query=x.query.astype(jnp.bfloat16), key=x.key.astype(jnp.bfloat16))


KERNELS = Kernels(forward, gradient)
