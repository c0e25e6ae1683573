"""The checked form in which every attention kernel receives its arguments."""

import dataclasses
import math
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.checks import (
    check_broadcastable,
    check_dtype,
    check_flag,
    check_pair,
    check_rank,
    check_shape,
)
from jaxattn.core.pytree import register


@register
@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of one attention call: checked, batched, query heads split into (K, G).

    Query head k G + g reads key head k. A head axis of a bias or mask is split alike, and (1, 1) where it was 1.

    Attributes:
        query: (B, T, K, G, H).
        key: (B, S, K, H).
        value: (B, S, K, V).
        key_bias: (B or 1, S, K or 1, G or 1), or None.
        log_decay: as key_bias; its second axis may be 1, too.
        mask: bool (B, K, G, T, S), every axis full or 1, or None.
        bias: float, as mask.
        segment_ids: integers (B, T) and (B, S), or None.
        query_seq_lengths: integers (B,), or None.
        key_value_seq_lengths: integers (B,), or None.
        query_offset: position of query 0 among the keys, one for all rows or one a row; None for 0.
        scale: factor on q·k.
        is_causal: whether query i attends to keys j <= i (+ query_offset) only.
        logits_soft_cap: what bounds the scores before any bias, by cap · tanh(score / cap); None for no bound.
        sinks: (K, G), a score a head of a key without a value, or None.
        return_residual: whether the logarithm of the normaliser is asked for.
        window: query i attends to keys i − left to i + right (+ query_offset) only; None is without end.
        batched: whether the caller's arrays had a batch axis.
    """

    query: Any
    key: Any
    value: Any
    key_bias: Any = None
    log_decay: Any = None
    mask: Any = None
    bias: Any = None
    segment_ids: Any = None
    query_seq_lengths: Any = None
    key_value_seq_lengths: Any = None
    query_offset: Any = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    is_causal: bool = False
    window: tuple[int | None, int | None] = dataclasses.field(default=(None, None), metadata={"static": True})
    logits_soft_cap: float | None = dataclasses.field(default=None, metadata={"static": True})
    sinks: Any = None
    return_residual: bool = False
    batched: bool = True

    def replace(self, **changes: Any) -> "Call":
        """The call with some attributes changed."""
        return dataclasses.replace(self, **changes)

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """The window, cut at the diagonal where the call is causal."""
        left, right = self.window
        return left, 0 if self.is_causal else right

    @property
    def is_empty(self) -> bool:
        """Whether there is no output at all, or no key that it could depend on."""
        return 0 in (*self.query.shape[:2], self.key.shape[1], self.value.shape[-1])

    def zeros(self, dtype: Any) -> Array:
        """The output (B, T, N, V) of an empty call."""
        return self.merge_heads(jnp.zeros((*self.query.shape[:4], self.value.shape[-1]), dtype))

    def merge_heads(self, out: Array) -> Array:
        """(B, T, K, G, V) -> (B, T, N, V), without the batch axis if the caller had none."""
        out = out.reshape(*out.shape[:2], out.shape[2] * out.shape[3], out.shape[4])
        return out if self.batched else out[0]

    @property
    def differs_in_groups(self) -> bool:
        """Whether query heads that share keys differ in how they weigh them."""
        return any(x is not None and x.shape[3] > 1 for x in (self.key_bias, self.log_decay))

    def with_own_keys(self) -> "Call":
        """The call with the keys and values repeated for every query head: K = N and G = 1."""
        batch, length, num_kv_heads, group, width = self.query.shape
        if group == 1:
            return self
        num_heads = num_kv_heads * group

        def merge(x: Any, axis: int) -> Any:
            if x is None:
                return None
            heads = x.shape[axis] * x.shape[axis + 1]
            return x.reshape(*x.shape[:axis], heads, 1, *x.shape[axis + 2 :])

        return self.replace(
            query=self.query.reshape(batch, length, num_heads, 1, width),
            key=repeat_heads(self.key, num_heads),
            value=repeat_heads(self.value, num_heads),
            key_bias=merge(self.key_bias, 2),
            log_decay=merge(self.log_decay, 2),
            mask=merge(self.mask, 1),
            bias=merge(self.bias, 1),
            sinks=merge(self.sinks, 0),
        )

    def with_own_sums(self) -> "Call":
        """The call as kernels need it that sum keys up before queries come.

        A key bias or decay that differs between the query heads of a group makes their keys differ: they are then
        repeated, and it is (B or 1, S or 1, K or 1, 1). Each needs sums of its own anyway, products that cost M times
        what is repeated; only features are made more often than they need be. Arrays are in the accumulation dtype,
        but for queries, keys and values that are all bfloat16: these stay what they are, half the bytes.
        """
        call = self.with_own_keys() if self.differs_in_groups else self
        arrays = call.query, call.key, call.value
        dtype = accumulation_dtype(*arrays)
        if all(x.dtype == jnp.bfloat16 for x in arrays):
            return call
        query, key, value = (x.astype(dtype) for x in arrays)
        return call.replace(query=query, key=key, value=value)

    def with_key_weights(self) -> "Call":
        """`with_own_sums` with key_bias (B, S, K, 1), never None; removed keys and values are 0.

        log_decay has the same shape, or is None. Both are in the accumulation dtype.
        """
        call = self.with_own_sums()
        dtype = accumulation_dtype(call.query)
        key, value = call.key, call.value
        if call.key_bias is None:
            key_bias = jnp.zeros((1, 1, 1, 1), dtype)
        else:
            key_bias = call.key_bias.astype(dtype)
            key, value = jnp.where(key_bias == -jnp.inf, 0, key), jnp.where(key_bias == -jnp.inf, 0, value)
        key_bias = jnp.broadcast_to(key_bias, (*key.shape[:3], 1))
        log_decay = call.log_decay
        if log_decay is not None:
            log_decay = jnp.broadcast_to(log_decay.astype(dtype), key_bias.shape)
        return call.replace(key=key, value=value, key_bias=key_bias, log_decay=log_decay)


def repeat_heads(x: Array, num_heads: int, axis: int = 2) -> Array:
    """Repeats key/value heads so that there is one for each of `num_heads` query heads."""
    return x if x.shape[axis] == num_heads else jnp.repeat(x, num_heads // x.shape[axis], axis=axis)


def accumulation_dtype(*arrays: Array) -> Any:
    """float32, or float64 when an input is float64."""
    return jnp.result_type(jnp.float32, *arrays)


def check_scale(scale: float | None, head_dim: int) -> float:
    """The factor on the scores: `scale`, or 1/sqrt(head width)."""
    if scale is None:
        return float(head_dim) ** -0.5
    if isinstance(scale, jax.core.Tracer) or not isinstance(scale, Real):
        raise ValueError(
            f"scale must be None or a number known at trace time; got {type(scale).__name__}. "
            "To learn a temperature, multiply the query."
        )
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite; got {scale}.")
    return float(scale)


def check_qk(query: Array, key: Array) -> None:
    """Raises ValueError unless the queries can be compared with the keys."""
    for name, array in (("query", query), ("key", key)):
        check_dtype(name, array, jnp.floating, "floating point")
    check_rank("query", query, (3, 4), "(T, N, H) or (B, T, N, H)")
    *batch, _, num_heads, head_dim = jnp.shape(query)
    if head_dim == 0:
        raise ValueError("query must have a head width H of at least 1; got 0.")
    layout = "(B, S, K, H)" if batch else "(S, K, H)"
    check_rank("key", key, (jnp.ndim(query),), f"{layout}, batched as query is")
    length, num_kv_heads = jnp.shape(key)[-3:-1]
    check_shape("key", key, (*batch, length, num_kv_heads, head_dim), layout)
    if num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(
            "query must have a multiple of key's heads (N divisible by K); "
            f"got N = {num_heads}, K = {num_kv_heads}."
        )


def check_qkv(query: Array, key: Array, value: Array) -> None:
    """Raises ValueError unless query, key and value are arrays that can attend to each other."""
    check_qk(query, key)
    check_dtype("value", value, jnp.floating, "floating point")
    layout = "(B, S, K, V)" if jnp.ndim(query) == 4 else "(S, K, V)"
    check_rank("value", value, (jnp.ndim(query),), f"{layout}, batched as query is")
    check_shape("value", value, (*jnp.shape(key)[:-1], jnp.shape(value)[-1]), layout)


def check_call(
    query: Array,
    key: Array,
    value: Array,
    *,
    key_bias: Array | None = None,
    log_decay: Array | None = None,
    mask: Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Array | None = None,
    key_value_seq_lengths: Array | None = None,
    segment_ids: Array | tuple[Array, Array] | None = None,
) -> Call:
    """Checks the arguments of an attention function, adds a missing batch axis and splits the heads."""
    check_qkv(query, key, value)
    batched = jnp.ndim(query) == 4

    def with_batch(x: Any) -> Array:
        return jnp.asarray(x) if batched else jnp.asarray(x)[None]

    query, key, value = map(with_batch, (query, key, value))
    batch, query_length, num_heads, head_dim = query.shape
    key_length, num_kv_heads = key.shape[1:3]
    sizes = {"B": batch, "N": num_heads, "T": query_length, "S": key_length}

    def split(x: Array, axis: int) -> Array:
        heads = (1, 1) if x.shape[axis] == 1 else (num_kv_heads, num_heads // num_kv_heads)
        return x.reshape(*x.shape[:axis], *heads, *x.shape[axis + 1 :])

    def checked(name: str, x: Any, axis: int, kind: Any, accepted: str) -> Any:
        """A bias or mask with its heads on `axis`, 1 for pairs of tokens and 2 for keys."""
        if x is None:
            return None
        check_dtype(name, x, kind, accepted)
        layout = "B, N, T, S" if axis == 1 else "B, S, N"
        target = tuple(sizes[letter] for letter in layout.split(", "))
        if not batched:
            layout, target = layout.removeprefix("B, "), target[1:]
        check_broadcastable(name, x, target, f"({layout})")
        return split(with_batch(x), axis)

    def lengths(name: str, x: Any) -> Any:
        if x is None:
            return None
        check_dtype(name, x, jnp.integer, "integer")
        check_shape(name, x, (batch,) if batched else (), "(B,)" if batched else "()")
        return with_batch(x)

    key_bias = checked("key_bias", key_bias, 2, jnp.floating, "floating point")
    if key_bias is not None and key_bias.shape[1] != key_length:
        raise ValueError(f"key_bias must have one entry a key, S = {key_length}; got {key_bias.shape[1]}.")
    if segment_ids is not None:
        tokens = ((batch, query_length), (batch, key_length)) if batched else ((query_length,), (key_length,))
        segment_ids = check_pair("segment_ids", segment_ids, jnp.integer, "integer", *tokens)
        if any(ids is None for ids in segment_ids):
            raise ValueError(
                "segment_ids must hold ids for the queries and for the keys; got None for one of them."
            )
        segment_ids = with_batch(segment_ids[0]), with_batch(segment_ids[1])
    return Call(
        query=split(query, 2),
        key=key,
        value=value,
        key_bias=key_bias,
        log_decay=checked("log_decay", log_decay, 2, jnp.floating, "floating point"),
        mask=checked("mask", mask, 1, jnp.bool_, "boolean, True where attended"),
        bias=checked("bias", bias, 1, jnp.floating, "floating point"),
        segment_ids=segment_ids,
        query_seq_lengths=lengths("query_seq_lengths", query_seq_lengths),
        key_value_seq_lengths=lengths("key_value_seq_lengths", key_value_seq_lengths),
        scale=check_scale(scale, head_dim),
        is_causal=check_flag("is_causal", is_causal),
        batched=batched,
    )
