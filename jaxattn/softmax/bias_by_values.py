"""A key bias for kernels that know no bias: carried by the values instead of the scores."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxattn.core.call import Call, accumulation_dtype

# Plain attention of query (B, T, N, H), key (B, S, K, H) and value (B, S, K, V).
Attend = Callable[[Array, Array, Array], Array]

# Fused kernels take head widths that are multiples of this.
WIDTH_MULTIPLE = 8


def padded_width(width: int) -> int:
    """`width` rounded up to what fused kernels accept."""
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def attend_with_key_bias(attend: Attend, call: Call) -> Float[Array, "B T K G V"]:
    """softmax(s q·k + key_bias) v by one call of plain attention and one division.

    With p = softmax(s q·k) and g_j = exp(key_bias_j − max_j key_bias_j),

        out_i = Σ_j p_ij g_j v_j / Σ_j p_ij g_j,

    so plain attention over the values [g v, g] gives numerator and denominator, and the gradient of key_bias
    comes out of the gradient of the values: nothing of size T×S is formed for it.

    Limits. The largest bias has g = 1; a key whose bias lies more than 87 below it vanishes (float32 and
    bfloat16 alike; in float16 already at about 10). A query that may see only such keys (a causal row before
    the largest bias) or whose allowed keys hold less than about 1e-38 of p (removed keys are zero vectors here,
    and score 0) gives 0 where the direct form still has an answer. In bfloat16 the three roundings, of g v, of
    the numerator and of the denominator, cost up to three units in the last place.

    Args:
        attend: plain attention, mask and scale already bound.
        call: with one bias a query head and K < N, its keys and values are repeated to N heads. Without a key bias
            this is `attend` alone.

    Returns:
        In the dtype of `attend`; 0 in rows without a key.
    """
    shape = call.query.shape[:4]
    if call.key_bias is not None and call.key_bias.shape[3] != 1:
        call = call.with_own_keys()
    query, key, value = call.query.reshape(*shape[:2], -1, call.query.shape[-1]), call.key, call.value
    if call.key_bias is None:
        return attend(query, key, value).reshape(*shape, -1)
    dtype, width = accumulation_dtype(query, key, value), value.shape[-1]
    key_bias = call.key_bias.astype(dtype)
    top = lax.stop_gradient(key_bias.max(axis=1, keepdims=True))
    # Rounded once and used for numerator and denominator alike, so that the rounding is a slightly other gate
    # and no error of normalisation.
    gate = jnp.exp(key_bias - jnp.where(top == -jnp.inf, 0, top)).astype(value.dtype)
    columns = jnp.concatenate([gate * value, jnp.broadcast_to(gate, (*value.shape[:3], 1))], axis=-1)
    out = attend(query, key, pad_width(columns, padded_width(width + 1)))
    numerator, denominator = out[..., :width].astype(dtype), out[..., width : width + 1].astype(dtype)
    empty = denominator == 0
    out = jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator)).astype(out.dtype)
    return out.reshape(*shape, width)


def pad_width(x: Array, width: int) -> Array:
    """Zero columns up to `width` on the last axis."""
    missing = width - x.shape[-1]
    return x if missing == 0 else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
