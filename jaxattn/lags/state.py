"""Cross-correlation attention one call at a time, over a cache of widened keys."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.call import repeat_heads
from jaxattn.core.decode import check_sizes, check_step
from jaxattn.core.explicit import automatic_axes, but_width, same
from jaxattn.core.padding import padding_key_bias
from jaxattn.core.pytree import serializable
from jaxattn.lags.attention import kept_keys
from jaxattn.lags.scores import LagLogits, check_lag_logits, check_token_mask, lag_weights, widen, zero_masked
from jaxattn.softmax import (
    DotProductAttentionState,
    dot_product_attention_init_state,
    dot_product_attention_step,
)


@serializable
class CrossCorrelationState(NamedTuple):
    """The cache of widened keys and of values, and the last L raw queries and keys (zeros before the start)."""

    attention: DotProductAttentionState
    query: Float[Array, "B L N H"]
    key: Float[Array, "B L K H"]

    def cut_by_position(self, axis_name: str) -> "CrossCorrelationState":
        """A PartitionSpec for every array, as `cross_correlation_attention_step` takes them with `axis_name`."""
        whole: Any = PartitionSpec()
        return CrossCorrelationState(self.attention.cut_by_position(axis_name), whole, whole)


def cross_correlation_attention_init_state(
    batch: int,
    max_length: int,
    num_kv_heads: int,
    head_dim: int,
    lag_logits: LagLogits,
    *,
    num_heads: int | None = None,
    value_dim: int | None = None,
    dtype: Any = jnp.float32,
) -> CrossCorrelationState:
    """An empty cache for `cross_correlation_attention_step`.

    Args:
        batch: sequences decoded together, B.
        max_length: positions the cache can hold.
        num_kv_heads: key/value heads, K.
        head_dim: width of queries and keys, H.
        lag_logits: as every step will get them, (2L + 1,), or (N, 2L + 1): the cache then holds N heads.
        num_heads: query heads, N, a multiple of K; K when None.
        value_dim: width of the values, `head_dim` when None.
        dtype: dtype of the cached arrays.

    Returns:
        A pytree of fixed shapes.

    Raises:
        ValueError: a size is not positive, K does not divide N, or `lag_logits` has another shape.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import cross_correlation_attention_init_state
        >>> state = cross_correlation_attention_init_state(1, 16, 2, 8, jnp.zeros((4, 7)), num_heads=4)
        >>> state.attention.key.shape, state.key.shape
        ((1, 16, 4, 16), (1, 3, 2, 8))
    """
    num_heads = check_sizes(num_kv_heads=num_kv_heads, num_heads=num_heads)
    check_lag_logits(lag_logits, num_heads)
    lags = lag_logits.shape[-1] // 2
    attention = dot_product_attention_init_state(
        batch,
        max_length,
        num_heads if lag_logits.ndim == 2 else num_kv_heads,
        2 * head_dim,
        num_heads=num_heads,
        value_dim=head_dim if value_dim is None else value_dim,
        dtype=dtype,
    )
    return CrossCorrelationState(
        attention,
        jnp.zeros((batch, lags, num_heads, head_dim), dtype),
        jnp.zeros((batch, lags, num_kv_heads, head_dim), dtype),
    )


@automatic_axes(same, but_width)
def cross_correlation_attention_step(
    state: CrossCorrelationState,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K V"],
    lag_logits: LagLogits,
    *,
    key_bias: Float[Array, "#B T #N"] | None = None,
    token_mask: Bool[Array, "B T"] | None = None,
    scale: float | None = None,
    query_seq_lengths: Int[Array, " B"] | None = None,
    axis_name: str | None = None,
) -> tuple[CrossCorrelationState, Float[Array, "B T N V"]]:
    """Appends T new tokens and attends from them, causally; any split gives the causal whole.

    Args:
        state: from `cross_correlation_attention_init_state` or the step before.
        query: (B, T, N, H), T >= 1 new tokens.
        key: (B, T, K, H).
        value: (B, T, K, V).
        lag_logits: (2L + 1,) or (N, 2L + 1), in the shape the state was made for.
        key_bias: bias on the new keys, broadcastable to (B, T, N), as in `cross_correlation_attention`.
        token_mask: True at real tokens among the new ones, (B, T).
        scale: factor on the scores, 1/sqrt(H) when None; the same in every step.
        query_seq_lengths: (B,) int, how many of the T tokens each sequence has; see `dot_product_attention_step`.
        axis_name: an axis of a mesh that cuts the cache (`state.attention`) by position; see
            `dot_product_attention_step`.

    Returns:
        (new state, output (B, T, N, V) in the query's dtype); NaN once more than `max_length` tokens came.

    Raises:
        ValueError: a shape or dtype does not fit the state.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import cross_correlation_attention_init_state, cross_correlation_attention_step
        >>> x, lag_logits = jnp.ones((1, 3, 2, 4)), jnp.zeros(3)
        >>> state = cross_correlation_attention_init_state(1, 8, 2, 4, lag_logits)
        >>> state, out = cross_correlation_attention_step(state, x, x, x, lag_logits)
        >>> out.shape, state.attention.length.tolist()
        ((1, 3, 2, 4), [3])
    """
    call = check_step(query, key, value, key_bias, scale, query_seq_lengths)
    check_lag_logits(lag_logits, query.shape[2])
    lags, cached_heads = state.query.shape[1], state.attention.key.shape[2]
    key_heads = query.shape[2] if lag_logits.ndim == 2 else key.shape[2]
    if (lag_logits.shape[-1], key_heads) != (2 * lags + 1, cached_heads):
        raise ValueError(
            f"lag_logits must have the shape the state was made for, 2L + 1 = {2 * lags + 1} lags and a cache of "
            f"{cached_heads} heads; got {lag_logits.shape} and {key_heads} heads."
        )
    query_mask, _ = check_token_mask(token_mask, query, key)
    key_bias = padding_key_bias(token_mask, key_bias)
    kept = kept_keys(key_bias, query, key)
    queries, keys = (
        jnp.concatenate([past, zero_masked(x, mask).astype(past.dtype)], axis=1)
        for past, x, mask in ((state.query, query, query_mask), (state.key, key, kept))
    )
    wide_query, wide_key = widen(queries, keys, *lag_weights(lag_logits), history=lags)
    attention, out = dot_product_attention_step(
        state.attention,
        wide_query.astype(query.dtype),
        wide_key.astype(key.dtype),
        repeat_heads(value, key_heads),
        key_bias=key_bias,
        scale=call.scale,
        query_seq_lengths=query_seq_lengths,
        axis_name=axis_name,
    )

    def last(x: Array) -> Array:
        if query_seq_lengths is None:
            return x[:, x.shape[1] - lags :]
        return jax.vmap(lambda x, start: lax.dynamic_slice_in_dim(x, start, lags))(x, query_seq_lengths)

    return CrossCorrelationState(attention, last(queries), last(keys)), out
