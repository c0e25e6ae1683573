"""Memory-bounded dot-product attention in plain XLA: blocks, online softmax, recomputation backward."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.arguments import Arguments, accumulation_dtype

BLOCK_QUERY = 256
BLOCK_KEY = 256


class _Blocks(NamedTuple):
    """What is known at trace time."""

    scale: float
    is_causal: bool
    query_block: int
    key_block: int
    key_length: int  # before padding


class _Operands(NamedTuple):
    """Blocked arrays; heads are split into (K, G) and 1 where they broadcast.

    query (nq, B, K, G, bq, H), key (nk, B, K, bk, H), value (nk, B, K, bk, V),
    key_bias (nk, B|1, K|1, G|1, bk), bias (B|1, K|1, G|1, T|1, S|1).
    """

    query: Array
    key: Array
    value: Array
    key_bias: Array | None
    bias: Array | None


class _Structure(NamedTuple):
    """Boolean and integer arrays, no gradients: mask as bias above, segments (nq, B, bq), (nk, B, bk)."""

    mask: Array | None
    segments: tuple[Array, Array] | None
    query_offset: Array | None


def _block_size(length: int, target: int) -> int:
    """A block no longer than about `target` that cuts `length` with little padding."""
    count = max(1, -(-length // target))
    block = -(-length // count)
    return max(1, block if count == 1 else -(-block // 8) * 8)


def blockwise_attention(a: Arguments, query_block: int = BLOCK_QUERY, key_block: int = BLOCK_KEY) -> Array:
    """Flash-style attention: O(T + S) memory, forward and backward.

    For each block of queries a running maximum m, normaliser l and weighted sum o are updated a block of keys
    at a time:

        m' = max(m, max_j s_j),  l' = e^(m − m') l + Σ e^(s_j − m'),  o' = e^(m − m') o + Σ e^(s_j − m') v_j.

    Only the output and log-sum-exp are saved; the backward pass recomputes e^(s_j − lse) a block at a time
    and yields gradients for query, key, value, key_bias and bias. With a causal mask, blocks above the
    diagonal are never visited. Reverse mode only (`jax.custom_vjp`): forward-mode and second derivatives are
    not defined.

    Reference: Dao et al. 2022, "FlashAttention", algorithms 1 and 4; Rabe & Staats 2021, "Self-attention does
    not need O(n²) memory".
    """
    batch, query_length, num_heads, _ = a.query.shape
    key_length, num_kv_heads = a.key.shape[1:3]
    dtype = accumulation_dtype(a.query, a.key, a.value)
    group = num_heads // num_kv_heads
    bq, bk = _block_size(query_length, query_block), _block_size(key_length, key_block)
    nq, nk = -(-query_length // bq), -(-key_length // bk)

    def pad(x: Array, axis: int, size: int) -> Array:
        missing = size - x.shape[axis]
        if missing == 0:
            return x
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, missing)
        return jnp.pad(x, widths)

    def cut(x: Array, axis: int, count: int, block: int) -> Array:
        """Splits `axis` into blocks and moves the block axis to the front."""
        x = pad(x, axis, count * block)
        x = x.reshape(*x.shape[:axis], count, block, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    def heads(x: Array, axis: int) -> Array:
        shape = (num_kv_heads, group) if x.shape[axis] != 1 else (1, 1)
        return x.reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])

    def dense(x: Array | None) -> Array | None:
        if x is None:
            return None
        x = heads(x, 1)
        x = pad(x, 3, nq * bq) if x.shape[3] != 1 or query_length == 1 else x
        return pad(x, 4, nk * bk) if x.shape[4] != 1 or key_length == 1 else x

    # In the accumulation dtype the scale goes onto the query once; in bf16 that would round, so it waits.
    query, scale = (a.query * a.scale, 1.0) if a.query.dtype == dtype else (a.query, a.scale)
    query = cut(heads(query, 2), 1, nq, bq)
    operands = _Operands(
        query=jnp.moveaxis(query, 2, 4),
        key=jnp.moveaxis(cut(a.key, 1, nk, bk), 2, 3),
        value=jnp.moveaxis(cut(a.value, 1, nk, bk), 2, 3),
        key_bias=None
        if a.key_bias is None
        else jnp.moveaxis(cut(heads(a.key_bias.astype(dtype), 2), 1, nk, bk), 2, 4),
        bias=dense(a.bias),
    )
    segments = a.segment_ids
    structure = _Structure(
        mask=dense(a.mask),
        segments=None if segments is None else (cut(segments[0], 1, nq, bq), cut(segments[1], 1, nk, bk)),
        query_offset=a.query_offset,
    )
    blocks = _Blocks(scale, a.is_causal, bq, bk, key_length)
    out = _attend_compiled(blocks, operands, structure)  # (nq, B, K, G, bq, V)
    out = jnp.moveaxis(out, (0, 4), (1, 2)).reshape(batch, nq * bq, num_heads, -1)
    return out[:, :query_length]


def _scores(
    blocks: _Blocks, x: _Operands, structure: _Structure, i: Any, j: Any, *, keys_first: bool = False
) -> Array:
    """Scores of query block i and key block j, -inf where a pair is not allowed.

    (B, K, G, bq, bk), or (B, K, bk, G, bq) with `keys_first`: the order in which two of the three products of
    the backward pass read them row by row.
    """
    query, key = x.query[i], x.key[j]
    dtype = accumulation_dtype(query, key)
    if keys_first:
        scores = jnp.einsum("BKSH,BKGTH->BKSGT", key, query, preferred_element_type=dtype)
    else:
        scores = jnp.einsum("BKGTH,BKSH->BKGTS", query, key, preferred_element_type=dtype)

    def arrange(block: Array) -> Array:
        return jnp.moveaxis(block, -1, 2) if keys_first else block

    if blocks.scale != 1:
        scores *= blocks.scale
    if x.key_bias is not None:
        scores += arrange(x.key_bias[j][..., None, :])
    if x.bias is not None:
        scores += arrange(_dense_block(blocks, x.bias, i, j).astype(dtype))
    allowed = None

    def also(condition: Array) -> Array:
        return condition if allowed is None else allowed & condition

    key_index = j * blocks.key_block + jnp.arange(blocks.key_block)
    if blocks.key_length % blocks.key_block:
        allowed = also(key_index < blocks.key_length)
    if blocks.is_causal:
        query_index = i * blocks.query_block + jnp.arange(blocks.query_block)
        if structure.query_offset is not None:
            query_index += structure.query_offset
        allowed = also(key_index <= query_index[:, None])
    if structure.segments is not None:
        query_ids, key_ids = structure.segments[0][i], structure.segments[1][j]
        allowed = also((query_ids[:, :, None] == key_ids[:, None, :])[:, None, None])
    if structure.mask is not None:
        allowed = also(_dense_block(blocks, structure.mask, i, j))
    if allowed is None:
        return scores
    allowed = allowed.reshape((1,) * (5 - allowed.ndim) + allowed.shape)
    return jnp.where(arrange(allowed), scores, -jnp.inf)


def _dense_start(blocks: _Blocks, x: Array, i: Any, j: Any) -> tuple[list[Any], list[int]]:
    starts, sizes = [0, 0, 0, 0, 0], list(x.shape)
    if x.shape[3] != 1:
        starts[3], sizes[3] = i * blocks.query_block, blocks.query_block
    if x.shape[4] != 1:
        starts[4], sizes[4] = j * blocks.key_block, blocks.key_block
    return starts, sizes


def _dense_block(blocks: _Blocks, x: Array, i: Any, j: Any) -> Array:
    starts, sizes = _dense_start(blocks, x, i, j)
    return lax.dynamic_slice(x, starts, sizes)


def _num_key_blocks(blocks: _Blocks, structure: _Structure, i: Any, nk: int) -> Any:
    """Key blocks that query block i can see: all, or those up to the diagonal."""
    if not blocks.is_causal:
        return nk
    end = (i + 1) * blocks.query_block + (0 if structure.query_offset is None else structure.query_offset)
    return jnp.clip(-(-end // blocks.key_block), 0, nk)


def _first_query_block(blocks: _Blocks, structure: _Structure, j: Any, nq: int) -> Any:
    """The first query block that sees key block j."""
    if not blocks.is_causal:
        return 0
    start = j * blocks.key_block - (0 if structure.query_offset is None else structure.query_offset)
    return jnp.clip(start // blocks.query_block, 0, nq)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks: _Blocks, x: _Operands, structure: _Structure) -> Array:
    return _forward(blocks, x, structure)[0]


def _forward(blocks: _Blocks, x: _Operands, structure: _Structure) -> tuple[Array, Array]:
    nq, nk = x.query.shape[0], x.key.shape[0]
    dtype = accumulation_dtype(x.query, x.key, x.value)
    rows = x.query.shape[1:-1]

    def query_step(_: None, i: Array) -> tuple[None, tuple[Array, Array]]:
        def key_step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, out = carry
            scores = _scores(blocks, x, structure, i, j)
            new_top = jnp.maximum(top, scores.max(axis=-1))
            safe_top = jnp.where(new_top == -jnp.inf, 0, new_top)
            decay = jnp.exp(top - safe_top)
            weights = jnp.exp(scores - safe_top[..., None])
            total = total * decay + weights.sum(axis=-1)
            update = jnp.einsum(
                "BKGTS,BKSV->BKGTV", weights.astype(x.value.dtype), x.value[j], preferred_element_type=dtype
            )
            return new_top, total, out * decay[..., None] + update

        start = (
            jnp.full(rows, -jnp.inf, dtype),
            jnp.zeros(rows, dtype),
            jnp.zeros((*rows, x.value.shape[-1]), dtype),
        )
        top, total, out = lax.fori_loop(0, _num_key_blocks(blocks, structure, i, nk), key_step, start)
        empty = total == 0
        out = out / jnp.where(empty, 1, total)[..., None]
        # +inf makes every recomputed weight exp(s − lse) of a row without keys zero.
        log_total = jnp.where(empty, jnp.inf, top + jnp.log(jnp.where(empty, 1, total)))
        return None, (out.astype(x.query.dtype), log_total)

    _, (out, log_total) = lax.scan(query_step, None, jnp.arange(nq))
    return out, log_total


def _attend_forward(blocks: _Blocks, x: _Operands, structure: _Structure):
    out, log_total = _forward(blocks, x, structure)
    return out, (x, structure, out, log_total)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sums the axes that are 1 in `shape`: the transpose of broadcasting."""
    axes = tuple(n for n, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if have != want)
    return x.sum(axis=axes, keepdims=True) if axes else x


def _attend_backward(blocks: _Blocks, residuals: Any, grad_out: Array):
    x, structure, out, log_total = residuals
    nq, nk = x.query.shape[0], x.key.shape[0]
    dtype = accumulation_dtype(x.query, x.key, x.value)
    # Σ_j p_j dp_j = o·do, one number a query row.
    delta = (out.astype(dtype) * grad_out.astype(dtype)).sum(axis=-1)

    def key_step(carry, j: Array):
        key, value = x.key[j], x.value[j]

        def query_step(i: Array, carry):
            grad_query, grad_bias, grad_key, grad_value, grad_key_bias = carry
            query, grad = x.query[i], grad_out[i]
            scores = _scores(blocks, x, structure, i, j, keys_first=True)  # (B, K, bk, G, bq)
            weights = jnp.exp(scores - log_total[i][:, :, None])
            grad_value += jnp.einsum(
                "BKSGT,BKGTV->BKSV", weights.astype(grad.dtype), grad, preferred_element_type=dtype
            )
            grad_weights = jnp.einsum("BKSV,BKGTV->BKSGT", value, grad, preferred_element_type=dtype)
            grad_scores = weights * (grad_weights - delta[i][:, :, None])
            if grad_key_bias is not None:
                grad_key_bias += _sum_to(jnp.moveaxis(grad_scores.sum(axis=-1), 2, 3), grad_key_bias.shape)
            if grad_bias is not None:
                starts, sizes = _dense_start(blocks, grad_bias, i, j)
                update = _sum_to(jnp.moveaxis(grad_scores, 2, -1), tuple(sizes))
                update += lax.dynamic_slice(grad_bias, starts, sizes)
                grad_bias = lax.dynamic_update_slice(grad_bias, update, starts)
            # The factor `scale` on these two products waits for the sums at the end.
            grad_scores = grad_scores.astype(query.dtype)
            grad_key += jnp.einsum("BKSGT,BKGTH->BKSH", grad_scores, query, preferred_element_type=dtype)
            step = jnp.einsum("BKSGT,BKSH->BKGTH", grad_scores, key, preferred_element_type=dtype)
            grad_query = grad_query.at[i].add(step)
            return grad_query, grad_bias, grad_key, grad_value, grad_key_bias

        start = (
            *carry,
            jnp.zeros(key.shape, dtype),
            jnp.zeros(value.shape, dtype),
            None if x.key_bias is None else jnp.zeros(x.key_bias.shape[1:], dtype),
        )
        first = _first_query_block(blocks, structure, j, nq)
        *carry, grad_key, grad_value, grad_key_bias = lax.fori_loop(first, nq, query_step, start)
        grad_key = (grad_key * blocks.scale).astype(key.dtype)
        return tuple(carry), (grad_key, grad_value.astype(value.dtype), grad_key_bias)

    carry = (
        jnp.zeros(x.query.shape, dtype),
        None if x.bias is None else jnp.zeros(x.bias.shape, dtype),
    )
    (grad_query, grad_bias), (grad_key, grad_value, grad_key_bias) = lax.scan(key_step, carry, jnp.arange(nk))
    grads = _Operands(
        query=(grad_query * blocks.scale).astype(x.query.dtype),
        key=grad_key,
        value=grad_value,
        key_bias=grad_key_bias,
        bias=None if grad_bias is None else grad_bias.astype(x.bias.dtype),
    )
    return grads, None


_attend.defvjp(_attend_forward, _attend_backward)
# Compiled once a shape, so that calls outside of any jit do not compile their loops anew.
_attend_compiled = jax.jit(_attend, static_argnums=0)
