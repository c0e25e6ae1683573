"""What the decoding functions of all families share: sizes of a state, checks of a step, writing to a cache."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxattn.core.call import Call, check_call
from jaxattn.core.checks import check_rank


def check_sizes(*, num_kv_heads: int, num_heads: int | None, **sizes: int) -> int:
    """Raises unless all sizes of a decoding state are positive and K divides N; returns `num_heads`, K for None."""
    num_heads = num_kv_heads if num_heads is None else num_heads
    for name, size in {**sizes, "num_kv_heads": num_kv_heads, "num_heads": num_heads}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}.")
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads must be a multiple of num_kv_heads = {num_kv_heads}; got {num_heads}.")
    return num_heads


def check_step(
    query: Array, key: Array, value: Array, key_bias: Array | None, scale: float | None = None
) -> Call:
    """Checks the arguments of a decoding step: T >= 1 new tokens of a batch, causal among themselves."""
    check_rank("query", query, (4,), "(B, T, N, H)")
    call = check_call(query, key, value, key_bias=key_bias, scale=scale, is_causal=True)
    length, key_length = query.shape[1], key.shape[1]
    if length < 1:
        raise ValueError("query must hold at least 1 new token; got 0.")
    if key_length != length:
        raise ValueError(f"key must hold the query's T = {length} new tokens; got {key_length}.")
    return call


def with_heads_of_state(call: Call, batch: int, heads: int) -> Call:
    """The call with one key head for each of the state's heads: K of them, or N after repeating keys.

    Raises:
        ValueError: the state is for another batch or number of heads, or has K heads where the key bias differs
            between query heads that share keys.
    """
    num_kv_heads, group = call.query.shape[2:4]
    if heads == num_kv_heads * group:
        call = call.with_own_keys()
    elif call.key_bias is not None and call.key_bias.shape[3] != 1:
        raise ValueError(
            f"state must have num_heads = {num_kv_heads * group}, since key_bias differs between query heads that "
            f"share keys; got a state of {heads} heads."
        )
    found = call.query.shape[0], call.key.shape[2]
    if found != (batch, heads):
        raise ValueError(f"state must be for (batch, heads) = {found}; got {(batch, heads)}.")
    return call


def write(cache: Array, new: Array, length: Int[Array, ""]) -> Array:
    """`cache` (B, max_length, ...) with `new` (B, T, ...) at positions `length` to length + T − 1."""
    return lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), length, axis=1)


def nan_beyond(out: Array, length: Int[Array, ""], max_length: int) -> Array:
    """`out`, or NaN once more tokens came than the state has room for: it would otherwise be silently wrong."""
    return jnp.where(length <= max_length, out, jnp.nan)
