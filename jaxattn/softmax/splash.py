"""Splash attention, JAX's fused kernel for TPUs, with what it cannot do spelled out before it is called."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.call import Call
from jaxattn.softmax.key_columns import merged_query, pad_axis, with_key_columns
from jaxattn.softmax.reach import Reach, in_reach

# Lanes of a TPU's vector unit: lengths become multiples of it.
_LANES = 128
_LARGEST_BLOCK = 512
# Segments of padded keys and of padded queries: no token has them, nor do they attend to each other.
_PADDED_KEY, _PADDED_QUERY = -(2**31), 1 - 2**31


def splash_cannot(call: Call) -> str | None:
    """Why splash attention cannot take these arguments, or None if it can."""
    for name, reason in (
        ("bias", "takes no bias; use implementation='blockwise', or a key_bias."),
        ("mask", "takes no mask that depends on the query; use implementation='blockwise'."),
        ("query_offset", "takes no query_offset; use implementation='blockwise'."),
    ):
        if getattr(call, name) is not None:
            return reason
    if call.return_residual:
        return "takes no return_residual, whose gradient it does not have; use implementation='blockwise'."
    if call.logits_soft_cap is not None and call.key_bias is not None:
        return (
            "takes no logits_soft_cap beside a key_bias, which it would cap; use implementation='blockwise'."
        )
    if call.query.dtype not in (jnp.bfloat16, jnp.float32) or not (
        call.query.dtype == call.key.dtype == call.value.dtype
    ):
        return (
            "needs query, key and value all in bfloat16 or all in float32; "
            f"got {call.query.dtype}, {call.key.dtype}, {call.value.dtype}."
        )
    left, _ = call.reach
    (_, length), (_, key_length) = (_block_and_length(x.shape[1]) for x in (call.query, call.key))
    if left is not None and length - 1 - left >= key_length:
        return (
            "needs a key in the window of every query; got "
            f"T = {call.query.shape[1]}, S = {call.key.shape[1]}, local_window_size = {call.window}."
        )
    return None


def splash_attention(call: Call, interpret: bool = False) -> Float[Array, "B T K G V"]:
    """Fused attention on TPUs, forward and backward: memory linear in T + S, and no dead blocks.

    A key bias is carried by columns of the keys (`with_key_columns`). Lengths become segments. The scale is
    multiplied into the queries, which rounds them once more in bfloat16 unless it is a power of two.

    Args:
        call: checked arguments.
        interpret: run on any platform, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    shape = call.query.shape[:4]
    (query_block, length), (key_block, key_length) = map(_block_and_length, (shape[1], call.key.shape[1]))
    ids = _segments(call, length, key_length)
    scaled = (call.query * call.scale).astype(call.query.dtype)
    call = with_key_columns(call.replace(query=scaled, scale=1.0))
    query = pad_axis(merged_query(call), 1, length)
    key, value = (pad_axis(x, 1, key_length) for x in (call.key, call.value))
    mask = _mask(splash_attention_mask, call.reach, (length, key_length))
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([mask] * query.shape[2]),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_kv_dkv_compute=key_block,
            block_q_dq=query_block,
            block_kv_dq=key_block,
        ),
        attn_logits_soft_cap=call.logits_soft_cap,
        interpret=interpret,
    )
    sinks = None if call.sinks is None else call.sinks.reshape(-1).astype(jnp.float32)

    def attend(query: Array, key: Array, value: Array, ids: Any) -> Array:
        segments = None if ids is None else splash_attention_kernel.SegmentIds(*ids)
        return kernel(query, key, value, segments, sinks)

    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    out = jnp.swapaxes(jax.vmap(attend)(query, key, value, ids), 1, 2)
    out = out[:, : shape[1]].reshape(*shape, -1)
    return (
        out if ids is None else jnp.where(_has_keys(call.reach, ids)[:, : shape[1], None, None, None], out, 0)
    )


def _block_and_length(length: int) -> tuple[int, int]:
    """The largest block whose multiple is at most an eighth longer than what lanes need, and that multiple."""
    needed = -(-length // _LANES) * _LANES
    for block in range(min(needed, _LARGEST_BLOCK), _LANES, -_LANES):
        if 8 * (-needed % block) <= needed:
            return block, needed + -needed % block
    return _LANES, needed


def _mask(masks: Any, reach: Reach, shape: tuple[int, int]) -> Any:
    if reach == (None, None):
        return masks.FullMask(shape)
    return masks.CausalMask(shape) if reach == (None, 0) else masks.LocalMask(shape, reach, 0)


def _segments(call: Call, length: int, key_length: int) -> tuple[Int[Array, "B T"], Int[Array, "B S"]] | None:
    """Segment ids of queries and keys, in which padded keys are alone; None where there is neither."""
    batch, (query_length, num_keys) = call.query.shape[0], (call.query.shape[1], call.key.shape[1])
    lengths = call.key_value_seq_lengths
    # A causal query sees no key behind it, and so no padding at the end, unless it comes after all keys.
    hidden = call.reach[1] == 0 and query_length <= num_keys
    if call.segment_ids is None and lengths is None and (num_keys == key_length or hidden):
        return None
    ids = call.segment_ids
    if ids is None:
        ids = jnp.zeros((batch, query_length), jnp.int32), jnp.zeros((batch, num_keys), jnp.int32)
    query_ids, key_ids = (x.astype(jnp.int32) for x in ids)
    kept = jnp.arange(key_length) < (num_keys if lengths is None else lengths[:, None])
    key_ids = jnp.where(kept, pad_axis(key_ids, 1, key_length), _PADDED_KEY)
    query_ids = jnp.where(jnp.arange(length) < query_length, pad_axis(query_ids, 1, length), _PADDED_QUERY)
    return query_ids, key_ids


def _has_keys(reach: Reach, ids: tuple[Array, Array]) -> Bool[Array, "B T"]:
    """Which queries see any key: one pass over T×S that is never stored."""
    query_ids, key_ids = ids
    seen = query_ids[:, :, None] == key_ids[:, None, :]
    near = in_reach(reach, jnp.arange(query_ids.shape[1]), jnp.arange(key_ids.shape[1]))
    return (seen if near is None else seen & near[:, 0, 0]).any(axis=2)
