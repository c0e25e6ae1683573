"""Arguments of attention in the form of those kernels that sum keys up: batched, with groups of query heads."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.arguments import accumulation_dtype
from jaxattn.core.checks import check_broadcastable, check_dtype, check_shape


class Call(NamedTuple):
    """A checked call: query (B, T, K, G, D), key (B, S, K, D), value (B, S, K, V), key_bias (B, S, K)."""

    query: Array
    key: Array
    value: Array
    key_bias: Array
    segments: Array | None


def prepare(
    query: Array, key: Array, value: Array, key_bias: Array | None, segment_ids: Array | None = None
) -> Call:
    """Adds the batch axis, splits heads into (K, G), and zeroes removed keys, whose values may be NaN.

    Shapes of query, key and value are checked already. A key bias that differs between the query heads of a group
    makes their keys differ: they are then repeated, and G is 1.
    """
    batched = jnp.ndim(query) == 4
    dtype = accumulation_dtype(query, key, value)
    query, key, value = (
        (x if batched else x[None]).astype(dtype) for x in map(jnp.asarray, (query, key, value))
    )
    batch, length, num_heads, width = query.shape
    key_length, num_kv_heads = key.shape[1:3]
    if key_bias is None:
        key_bias = jnp.zeros((1, 1, 1), dtype)
    else:
        check_dtype("key_bias", key_bias, jnp.floating, "floating point")
        layout, target = "(B, S, N)", (batch, key_length, num_heads)
        check_broadcastable(
            "key_bias", key_bias, target if batched else target[1:], layout if batched else "(S, N)"
        )
        key_bias = (key_bias if batched else jnp.asarray(key_bias)[None]).astype(dtype)
        if key_bias.shape[2] not in (1, num_kv_heads) or (
            key_bias.shape[2] != 1 and num_kv_heads != num_heads
        ):
            key, value = (jnp.repeat(x, num_heads // num_kv_heads, axis=2) for x in (key, value))
            num_kv_heads = num_heads
        gone = (key_bias == -jnp.inf)[..., None]
        key, value = jnp.where(gone, 0, key), jnp.where(gone, 0, value)
    if segment_ids is not None:
        check_dtype("segment_ids", segment_ids, jnp.integer, "integer")
        if key_length != length:
            raise ValueError(
                f"segment_ids needs as many keys as queries (T = S); got T = {length}, S = {key_length}."
            )
        check_shape(
            "segment_ids",
            segment_ids,
            (batch, length) if batched else (length,),
            "(B, T)" if batched else "(T,)",
        )
        segment_ids = segment_ids if batched else jnp.asarray(segment_ids)[None]
    query = query.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, width)
    return Call(query, key, value, jnp.broadcast_to(key_bias, key.shape[:3]), segment_ids)
