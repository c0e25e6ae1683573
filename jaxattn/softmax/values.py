"""A key bias for kernels that know no bias: carried by the values instead of the scores."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxattn.core.arguments import accumulation_dtype

# Fused kernels take head widths that are multiples of this.
WIDTH_MULTIPLE = 8


def padded_width(width: int) -> int:
    """`width` rounded up to what fused kernels accept."""
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def key_bias_by_values(
    attend: Callable[[Array, Array, Array], Array],
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    key_bias: Float[Array, "#B S #N"],
) -> Float[Array, "B T N V"]:
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
        attend: plain attention of (query, key, values of any width), mask and scale already bound.
        query: (B, T, N, H).
        key: (B, S, K, H).
        value: (B, S, K, V).
        key_bias: (B or 1, S, N or 1); −inf removes a key. With one bias a query head and K < N, keys and values
            are repeated to N heads.

    Returns:
        (B, T, N, V) in the dtype of `attend`; 0 in rows without a key.
    """
    batch, length, num_kv_heads, width = value.shape
    dtype = accumulation_dtype(query, key, value)
    key_bias = key_bias.astype(dtype)
    top = lax.stop_gradient(key_bias.max(axis=1, keepdims=True))
    # Rounded once and used for numerator and denominator alike, so that the rounding is a slightly other gate
    # and no error of normalisation.
    gate = jnp.exp(key_bias - jnp.where(top == -jnp.inf, 0, top)).astype(value.dtype)[..., None]
    num_heads = query.shape[2]
    if key_bias.shape[2] not in (1, num_kv_heads):
        key, value = (jnp.repeat(x, num_heads // num_kv_heads, axis=2) for x in (key, value))
    gate = jnp.broadcast_to(gate, (batch, length, value.shape[2], 1))
    columns = jnp.concatenate([gate * value, gate], axis=-1)
    columns = pad_width(columns, padded_width(width + 1))
    out = attend(query, key, columns)
    numerator, denominator = out[..., :width].astype(dtype), out[..., width : width + 1].astype(dtype)
    empty = denominator == 0
    return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator)).astype(out.dtype)


def pad_width(x: Array, width: int) -> Array:
    """Zero columns up to `width` on the last axis."""
    missing = width - x.shape[-1]
    return x if missing == 0 else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
