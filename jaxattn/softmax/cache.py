"""Dot-product attention one call at a time, over a cache of keys and values."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxattn.core.call import Call
from jaxattn.core.checks import check_shape
from jaxattn.core.decode import check_sizes, check_step, finish, num_new, write
from jaxattn.core.explicit import automatic_axes, but_width, same
from jaxattn.core.padding import zero_padding
from jaxattn.core.pytree import serializable
from jaxattn.core.sequence import check_axis
from jaxattn.softmax.attention import attend_cached
from jaxattn.softmax.options import with_options


@serializable
class DotProductAttentionState(NamedTuple):
    """The cache of `dot_product_attention_step`: what was written so far, in arrays of fixed size.

    key (B, max_length, K, H), value (B, max_length, K, V), key_bias (B, max_length, heads) float32 or None, and
    length (B,), the number of positions already written.
    """

    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K V"]
    key_bias: Float[Array, "B S heads"] | None
    length: Int[Array, " B"]

    def cut_by_position(self, axis_name: str) -> "DotProductAttentionState":
        """A PartitionSpec for every array, as `dot_product_attention_step` takes them with `axis_name`."""
        cut: Any = PartitionSpec(None, axis_name)
        whole: Any = PartitionSpec()
        return DotProductAttentionState(cut, cut, None if self.key_bias is None else cut, whole)


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
        num_heads: heads of the key bias in the cache, if steps will come with one: N for a bias a query head, K for
            one that all query heads of a key/value head share. None for no key bias.
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
    check_sizes(
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
        key_bias=None if num_heads is None else jnp.zeros((batch, max_length, num_heads), jnp.float32),
        length=jnp.zeros((batch,), jnp.int32),
    )


@automatic_axes(same, but_width)
def dot_product_attention_step(
    state: DotProductAttentionState,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K V"],
    *,
    key_bias: Float[Array, "#B T #N"] | None = None,
    scale: float | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    logits_soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    query_seq_lengths: Int[Array, " B"] | None = None,
    axis_name: str | None = None,
) -> tuple[DotProductAttentionState, Float[Array, "B T N V"]]:
    """Appends T new tokens to the cache and lets them attend causally to it and to each other.

    With t tokens of a sequence already written, its new query i attends to positions j <= t + i, so any split of a
    sequence into calls gives the causal `dot_product_attention` of the whole: a prompt is one call, then one token
    a call. The sequences of a batch need not be of one length.

    Args:
        state: from `dot_product_attention_init_state` or an earlier step.
        query: (B, T, N, H), T >= 1 new tokens.
        key: (B, T, K, H).
        value: (B, T, K, V).
        key_bias: (B or 1, T, N or 1), added to the scores of the new keys now and in later steps; −inf removes a key
            for good. It needs a state with key biases.
        scale: factor on the scores, 1/sqrt(H) when None; the same in every step.
        local_window_size: as in `dot_product_attention`, in positions of the cache, removed keys included; the
            same in every step.
        logits_soft_cap: as in `dot_product_attention`.
        sinks: as in `dot_product_attention`.
        query_seq_lengths: (B,) int, how many of the T tokens each sequence has, 0 to T. The others, at the end of its
            row, leave no trace: their outputs are 0. None for all T.
        axis_name: an axis of a mesh that cuts the cache by position, inside `jax.shard_map`: arrays of the state
            (B, max_length / devices, ...), all but `length`, are a device's part. All else is the same on every
            device. Each attends to its part, and the results are merged by their normalisers.

    Returns:
        (new state, output (B, T, N, V) in the query's dtype). For a sequence of more than `max_length` tokens every
        output is NaN: the cache would otherwise be silently wrong.

    Raises:
        ValueError: a shape or dtype does not fit the state.

    Examples:
        >>> import jax.numpy as jnp
        >>> state = dot_product_attention_init_state(1, 8, 2, 4)
        >>> x = jnp.ones((1, 3, 2, 4))
        >>> state, out = dot_product_attention_step(state, x, x, x)
        >>> out.shape, state.length.tolist()
        ((1, 3, 2, 4), [3])
    """
    call = check_step(query, key, value, key_bias, scale, query_seq_lengths)
    call = with_options(
        call, local_window_size=local_window_size, logits_soft_cap=logits_soft_cap, sinks=sinks
    )
    check_axis(axis_name)
    batch, count = query.shape[:2]
    part = max_length = state.key.shape[1]
    start = state.length  # in the part of this device
    if axis_name is not None:
        max_length, start = part * lax.axis_size(axis_name), start - part * lax.axis_index(axis_name)
    if count > max_length:
        raise ValueError(f"query must hold 1 to max_length = {max_length} new tokens; got {count}.")
    if state.key.shape[0] != batch:
        raise ValueError(f"query must have the state's batch B = {state.key.shape[0]}; got {batch}.")
    check_shape("key", key, (batch, count, *state.key.shape[2:]), "(B, T, K, H)")
    check_shape("value", value, (batch, count, *state.value.shape[2:]), "(B, T, K, V)")
    # Removed keys are zeroed before they are cached, so that a NaN in padding is never stored.
    call = zero_padding(call)

    def append(cache: Array | None, new: Array | None) -> Any:
        return None if cache is None or new is None else write(cache, new, start, num_new(call))

    new_state = DotProductAttentionState(
        key=append(state.key, call.key),
        value=append(state.value, call.value),
        key_bias=append(state.key_bias, _cached_bias(state, call)),
        length=state.length + num_new(call),
    )
    key_bias = new_state.key_bias
    cached = call.replace(
        key=new_state.key,
        value=new_state.value,
        key_bias=None if key_bias is None else key_bias.reshape(batch, part, key.shape[2], -1),
        key_value_seq_lengths=None,
        query_offset=start,
    )
    return new_state, finish(call, attend_cached(cached, axis_name), new_state.length, max_length)


def _cached_bias(state: DotProductAttentionState, call: Call) -> Array | None:
    """The key bias of the new tokens with the heads of the state, (B, T, heads)."""
    batch, count, num_kv_heads, group = call.query.shape[:4]
    if state.key_bias is None:
        if call.key_bias is None:
            return None
        raise ValueError(
            f"key_bias needs a state made for it: pass num_heads = {num_kv_heads * group} (or {num_kv_heads}, for a "
            "bias shared by the query heads of a key head) to dot_product_attention_init_state."
        )
    heads = state.key_bias.shape[2]
    shared = call.key_bias is None or call.key_bias.shape[3] == 1
    if not (heads == num_kv_heads * group or (shared and heads == num_kv_heads)):
        raise ValueError(
            f"query must have the heads of the state's key bias, N = {heads}; got {num_kv_heads * group}."
        )
    bias = jnp.zeros((1, 1, 1, 1)) if call.key_bias is None else call.key_bias
    bias = jnp.broadcast_to(bias, (batch, count, num_kv_heads, heads // num_kv_heads))
    return bias.reshape(batch, count, heads)
