"""The checked, batched form in which every dot-product backend receives its arguments."""

from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.checks import check_broadcastable, check_dtype, check_rank, check_shape


class Arguments(NamedTuple):
    """Arguments of one attention call, batched: q (B, T, N, H), k (B, S, K, H), v (B, S, K, V).

    key_bias is (B|1, S, N|1); mask and bias are rank 4 with every axis full or 1; lengths are (B,);
    segment_ids is a pair of (B, T) and (B, S). `query_offset` places query 0 at that key position for the
    causal mask (decoding); None means 0.
    """

    query: Array
    key: Array
    value: Array
    key_bias: Array | None
    mask: Array | None
    bias: Array | None
    scale: float
    is_causal: bool
    query_seq_lengths: Array | None = None
    key_value_seq_lengths: Array | None = None
    segment_ids: tuple[Array, Array] | None = None
    query_offset: Array | None = None


def accumulation_dtype(*arrays: Array) -> Any:
    """float32, or float64 when an input is float64."""
    return jnp.result_type(jnp.float32, *arrays)


def check_qkv(query: Array, key: Array, value: Array) -> None:
    """Raises ValueError unless query, key and value are arrays that can attend to each other."""
    for name, array in (("query", query), ("key", key), ("value", value)):
        check_dtype(name, array, jnp.floating, "floating point")
    check_rank("query", query, (3, 4), "(T, N, H) or (B, T, N, H)")
    rank = jnp.ndim(query)
    batch = jnp.shape(query)[:-3]
    prefix = "(B, " if rank == 4 else "("
    check_rank("key", key, (rank,), f"{prefix}S, K, H), batched as query is")
    check_rank("value", value, (rank,), f"{prefix}S, K, V), batched as query is")
    num_heads, head_dim = jnp.shape(query)[-2:]
    length, num_kv_heads = jnp.shape(key)[-3:-1]
    check_shape("key", key, (*batch, length, num_kv_heads, head_dim), f"{prefix}S, K, H)")
    check_shape("value", value, (*batch, length, num_kv_heads, jnp.shape(value)[-1]), f"{prefix}S, K, V)")
    if num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(
            "query must have a multiple of key's heads (N divisible by K); "
            f"got N = {num_heads}, K = {num_kv_heads}."
        )


def check_scale(scale: float | None, head_dim: int) -> float:
    """The factor on the scores: `scale`, or 1/sqrt(head width)."""
    if scale is None:
        return float(head_dim) ** -0.5
    if isinstance(scale, jax.core.Tracer) or not isinstance(scale, Real):
        raise ValueError(
            f"scale must be None or a number known at trace time; got {type(scale).__name__}. "
            "To learn a temperature, multiply the query."
        )
    return float(scale)


def check_arguments(
    query: Array,
    key: Array,
    value: Array,
    *,
    key_bias: Array | None,
    mask: Array | None,
    bias: Array | None,
    scale: float | None,
    is_causal: bool,
    query_seq_lengths: Array | None,
    key_value_seq_lengths: Array | None,
    segment_ids: Array | tuple[Array, Array] | None,
) -> Arguments:
    """Checks every argument, adds a missing batch axis and fills in the scale."""
    check_qkv(query, key, value)
    batched = jnp.ndim(query) == 4

    def with_batch(x: Any) -> Array:
        return jnp.asarray(x) if batched else jnp.asarray(x)[None]

    query, key, value = with_batch(query), with_batch(key), with_batch(value)
    batch, query_length, num_heads, head_dim = query.shape
    key_length = key.shape[1]

    def checked(name: str, x: Array | None, target: tuple[int, ...], layout: str, kind: Any, accepted: str):
        if x is None:
            return None
        check_dtype(name, x, kind, accepted)
        lead = 0 if batched else 1
        check_broadcastable(name, x, target[lead:], layout if batched else layout.replace("B, ", ""))
        return with_batch(x)

    key_bias = checked(
        "key_bias", key_bias, (batch, key_length, num_heads), "(B, S, N)", jnp.floating, "floating point"
    )
    if key_bias is not None and key_bias.shape[1] != key_length:
        raise ValueError(f"key_bias must have one entry a key, S = {key_length}; got shape {key_bias.shape}.")
    scores = (batch, num_heads, query_length, key_length)
    mask = checked("mask", mask, scores, "(B, N, T, S)", jnp.bool_, "boolean, True where attended")
    bias = checked("bias", bias, scores, "(B, N, T, S)", jnp.floating, "floating point")

    def lengths(name: str, x: Array | None) -> Array | None:
        if x is None:
            return None
        check_dtype(name, x, jnp.integer, "integer")
        check_shape(name, x, (batch,) if batched else (), "(B,)" if batched else "()")
        return with_batch(x)

    if segment_ids is not None:
        pair = tuple(segment_ids) if isinstance(segment_ids, (tuple, list)) else (segment_ids, segment_ids)
        if len(pair) != 2:
            raise ValueError(f"segment_ids must be one array or a pair (query, key); got {len(pair)} arrays.")
        for ids, length, layout in zip(pair, (query_length, key_length), ("T", "S"), strict=True):
            check_dtype("segment_ids", ids, jnp.integer, "integer")
            expected = (batch, length) if batched else (length,)
            check_shape("segment_ids", ids, expected, f"(B, {layout})" if batched else f"({layout},)")
        segment_ids = (with_batch(pair[0]), with_batch(pair[1]))
    return Arguments(
        query,
        key,
        value,
        key_bias,
        mask,
        bias,
        check_scale(scale, head_dim),
        bool(is_causal),
        lengths("query_seq_lengths", query_seq_lengths),
        lengths("key_value_seq_lengths", key_value_seq_lengths),
        segment_ids,
    )


def over_group(removed: Array, num_kv_heads: int) -> Array:
    """(B, S, N|1) -> (B, S, K|1): True where a key is removed for every query head that shares it."""
    batch, length, heads = removed.shape
    if heads == 1:
        return removed
    return removed.reshape(batch, length, num_kv_heads, -1).all(axis=-1)


def fold_key_mask(a: Arguments) -> Arguments:
    """Turns a mask that is the same for every query into a key bias of −inf."""
    if a.mask is None or a.mask.shape[2] != 1 or a.mask.shape[3] != a.key.shape[1]:
        return a
    kept = jnp.moveaxis(a.mask[:, :, 0, :], 1, 2)
    bias = jnp.zeros((), accumulation_dtype(a.query)) if a.key_bias is None else a.key_bias
    return a._replace(mask=None, key_bias=jnp.where(kept, bias, -jnp.inf))


def fold_lengths(a: Arguments) -> Arguments:
    """Turns key_value_seq_lengths into a key bias of −inf."""
    if a.key_value_seq_lengths is None:
        return a
    kept = (jnp.arange(a.key.shape[1]) < a.key_value_seq_lengths[:, None])[:, :, None]
    bias = jnp.zeros((), accumulation_dtype(a.query)) if a.key_bias is None else a.key_bias
    return a._replace(key_value_seq_lengths=None, key_bias=jnp.where(kept, bias, -jnp.inf))


def zero_padding(a: Arguments) -> Arguments:
    """Zeroes the keys, values and queries that a key bias of −inf or a length removes.

    It is a `where` on the arrays themselves, so that a NaN in padding meets no multiplication, forward or
    backward. A key removed for some query heads of a group only must be finite: the others need it.
    """
    key_bias = fold_lengths(a).key_bias
    if key_bias is not None:
        gone = over_group(key_bias == -jnp.inf, a.key.shape[2])[..., None]
        a = a._replace(key=jnp.where(gone, 0, a.key), value=jnp.where(gone, 0, a.value))
    if a.key_bias is not None:
        a = a._replace(key_bias=key_bias)
    if a.query_seq_lengths is not None:
        a = a._replace(query=jnp.where(query_is_valid(a), a.query, 0))
    return a


def query_is_valid(a: Arguments) -> Array:
    """(B, T, 1, 1) bool: False for padded query rows."""
    assert a.query_seq_lengths is not None
    return (jnp.arange(a.query.shape[1]) < a.query_seq_lengths[:, None])[:, :, None, None]
