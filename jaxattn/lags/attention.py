"""Softmax attention with cross-correlation scores."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn.core.call import check_qkv, check_scale, repeat_heads
from jaxattn.core.checks import check_broadcastable
from jaxattn.core.explicit import automatic_axes, but_width
from jaxattn.core.padding import padding_key_bias
from jaxattn.core.sequence import check_axis
from jaxattn.lags.scores import LagLogits, SegmentIds, TokenMask, check_token_mask, cross_correlation
from jaxattn.softmax import dot_product_attention


@automatic_axes(but_width)
def cross_correlation_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    lag_logits: LagLogits,
    *,
    key_bias: Float[Array, "*#B S #N"] | None = None,
    token_mask: TokenMask = None,
    mask: Bool[Array, "*#B #N #T #S"] | None = None,
    bias: Float[Array, "*#B #N #T #S"] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    segment_ids: SegmentIds = None,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*B T N V"]:
    """Softmax attention with the scores of `cross_correlation`.

    Args:
        query: (B, T, N, H), or without B, as are all others then.
        key: (B, S, K, H), K dividing N.
        value: (B, S, K, V).
        lag_logits: (2L + 1,) or (N, 2L + 1), for the lags −L … L.
        key_bias: bias on the keys, broadcastable to (B, S, N); a key that is −inf for every head also
            contributes nothing to its neighbours' keys.
        token_mask: True at real tokens, (B, T), or a pair of (B, T) and (B, S), either None. Others are not attended
            to and contribute nothing to their neighbours.
        mask: True where query i may attend to key j, broadcastable to (B, N, T, S).
        bias: bias on the scores, broadcastable to (B, N, T, S).
        scale: factor on the scores, 1/sqrt(H) when None.
        is_causal: query i attends to keys j <= i; the output then depends on tokens <= i alone.
        segment_ids: (B, T), or a pair of (B, T) and (B, S), for packed sequences.
        implementation: a backend of `dot_product_attention`, which sees the width 2H.
        axis_name: an axis of a mesh over which the tokens are cut, as in `dot_product_attention`.

    Returns:
        (B, T, N, V) in the query's dtype.

    Raises:
        ValueError: a wrong shape, dtype or name.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import cross_correlation_attention
        >>> x = jnp.ones((1, 6, 2, 8))
        >>> cross_correlation_attention(x, x, x, jnp.zeros((2, 5)), is_causal=True).shape
        (1, 6, 2, 8)

    Reference:
        As `cross_correlation`.
    """
    check_axis(axis_name)
    check_qkv(query, key, value)
    query_mask, key_mask = check_token_mask(token_mask, query, key)
    key_bias = padding_key_bias(key_mask, key_bias)
    kept = kept_keys(key_bias, query, key)
    wide_query, wide_key = cross_correlation(
        query, key, lag_logits, token_mask=(query_mask, kept), segment_ids=segment_ids, axis_name=axis_name
    )
    return dot_product_attention(
        wide_query,
        wide_key,
        repeat_heads(value, wide_key.shape[-2], axis=-2),
        key_bias=key_bias,
        mask=mask,
        bias=bias,
        scale=check_scale(scale, query.shape[-1]),
        is_causal=is_causal,
        segment_ids=segment_ids,
        implementation=implementation,
        axis_name=axis_name,
    )


def kept_keys(key_bias: Array | None, query: Array, key: Array) -> Bool[Array, "*B S"] | None:
    """False where a key is removed for every head, and then contributes nothing to its neighbours' keys."""
    if key_bias is None:
        return None
    check_broadcastable("key_bias", key_bias, (*key.shape[:-2], query.shape[-2]), "(B, S, N)")
    return jnp.broadcast_to((key_bias != -jnp.inf).any(axis=-1), key.shape[:-2])
