"""Dot-product attention one call at a time, over a cache of keys and values."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn.core.checks import check_shape
from jaxattn.core.decode import check_sizes, check_step, nan_beyond, write
from jaxattn.core.padding import zero_padding
from jaxattn.softmax.attention import attend_cached
from jaxattn.softmax.options import with_options


class DotProductAttentionState(NamedTuple):
    """The cache of `dot_product_attention_step`: what was written so far, in arrays of fixed size.

    key (B, max_length, K, H), value (B, max_length, K, V), key_bias (B, max_length, heads) float32 and length,
    the number of positions already written (int32 scalar).
    """

    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K V"]
    key_bias: Float[Array, "B S heads"]
    length: Int[Array, ""]


def dot_product_attention_init_state(
    batch: int,
    max_length: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    num_heads: int | None = None,
    value_dim: int | None = None,
    dtype: Any = jnp.float32,
) -> DotProductAttentionState:
    """An empty key-value cache.

    Args:
        batch: sequences decoded together, B.
        max_length: positions the cache can hold.
        num_kv_heads: key/value heads, K.
        head_dim: width of queries and keys, H.
        num_heads: query heads, N, a multiple of K, if the key bias differs between query heads that share keys: each
            then has its own in the cache. None for one a key/value head.
        value_dim: width of the values, `head_dim` when None.
        dtype: dtype of the cached keys and values.

    Returns:
        A pytree of fixed shapes, to be passed to `dot_product_attention_step`.

    Raises:
        ValueError: a size is not positive, or `num_heads` is not a multiple of `num_kv_heads`.

    Examples:
        >>> state = dot_product_attention_init_state(2, 16, 1, 8, num_heads=4)
        >>> state.key.shape, state.key_bias.shape
        ((2, 16, 1, 8), (2, 16, 4))
    """
    value_dim = head_dim if value_dim is None else value_dim
    num_heads = check_sizes(
        batch=batch,
        max_length=max_length,
        num_kv_heads=num_kv_heads,
        num_heads=num_heads,
        head_dim=head_dim,
        value_dim=value_dim,
    )
    return DotProductAttentionState(
        key=jnp.zeros((batch, max_length, num_kv_heads, head_dim), dtype),
        value=jnp.zeros((batch, max_length, num_kv_heads, value_dim), dtype),
        key_bias=jnp.zeros((batch, max_length, num_heads), jnp.float32),
        length=jnp.zeros((), jnp.int32),
    )


def dot_product_attention_step(
    state: DotProductAttentionState,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K V"],
    *,
    key_bias: Float[Array, "#B T #N"] | None = None,
    scale: float | None = None,
    local_window_size: int | tuple[int, int] | None = None,
) -> tuple[DotProductAttentionState, Float[Array, "B T N V"]]:
    """Appends T new tokens to the cache and lets them attend causally to it and to each other.

    With t tokens already written, new query i attends to positions j <= t + i, so any split of a sequence
    into calls gives the causal `dot_product_attention` of the whole: a prompt is one call, then one token a
    call.

    Args:
        state: from `dot_product_attention_init_state` or an earlier step.
        query: (B, T, N, H), T >= 1 new tokens.
        key: (B, T, K, H).
        value: (B, T, K, V).
        key_bias: (B or 1, T, N or 1), added to the scores of the new keys now and in later steps. −inf
            removes a key for good: that is how prompts of different lengths are padded, left or right.
        scale: factor on the scores, 1/sqrt(H) when None; the same in every step.
        local_window_size: as in `dot_product_attention`, in positions of the cache, removed keys included; the
            same in every step.

    Returns:
        (new state, output (B, T, N, V) in the query's dtype). Once more than `max_length` tokens are written
        every output is NaN: the cache would otherwise be silently wrong.

    Raises:
        ValueError: a shape or dtype does not fit the state.

    Examples:
        >>> import jax.numpy as jnp
        >>> state = dot_product_attention_init_state(1, 8, 2, 4)
        >>> x = jnp.ones((1, 3, 2, 4))
        >>> state, out = dot_product_attention_step(state, x, x, x)
        >>> out.shape, int(state.length)
        ((1, 3, 2, 4), 3)
    """
    call = with_options(check_step(query, key, value, key_bias, scale), local_window_size=local_window_size)
    batch, count, num_heads = query.shape[:3]
    max_length, heads = state.key_bias.shape[1:]
    if count > max_length:
        raise ValueError(f"query must hold 1 to max_length = {max_length} new tokens; got {count}.")
    shared = call.key_bias is None or call.key_bias.shape[3] == 1
    if state.key_bias.shape[0] != batch or not (heads == num_heads or (shared and heads == key.shape[2])):
        raise ValueError(
            f"query must have the state's batch and heads (B, N) = {state.key_bias.shape[::2]}; "
            f"got {(batch, num_heads)}."
        )
    check_shape("key", key, (batch, count, *state.key.shape[2:]), "(B, T, K, H)")
    check_shape("value", value, (batch, count, *state.value.shape[2:]), "(B, T, K, V)")
    # Removed keys are zeroed before they are cached, so that a NaN in padding is never stored.
    call = zero_padding(call)
    num_kv_heads = key.shape[2]
    new_bias = jnp.zeros((1, 1, 1, 1)) if call.key_bias is None else call.key_bias
    new_bias = jnp.broadcast_to(new_bias, (batch, count, num_kv_heads, heads // num_kv_heads))
    new_state = DotProductAttentionState(
        key=write(state.key, call.key, state.length),
        value=write(state.value, call.value, state.length),
        key_bias=write(state.key_bias, new_bias.reshape(batch, count, heads), state.length),
        length=state.length + count,
    )
    cached = call.replace(
        key=new_state.key,
        value=new_state.value,
        key_bias=new_state.key_bias.reshape(batch, max_length, num_kv_heads, -1),
        query_offset=state.length,
    )
    out = call.merge_heads(attend_cached(cached))
    return new_state, nan_beyond(out, new_state.length, max_length)
