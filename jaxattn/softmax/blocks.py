"""Arguments of blockwise attention cut into blocks, and the scores of one pair of blocks."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.call import Call, accumulation_dtype
from jaxattn.softmax.reach import Reach, in_reach, key_range, query_range


class Blocks(NamedTuple):
    """What is known at trace time: block sizes, the number of keys before padding, scale and cap of the
    products, and the reach of a query.
    """

    query_block: int
    key_block: int
    key_length: int
    scale: float
    logits_soft_cap: float | None
    reach: Reach


class Operands(NamedTuple):
    """Blocked arrays that have gradients; head axes are (K, G), or 1 where they broadcast.

    query (nq, B, K, G, bq, H), key (nk, B, K, bk, H), value (nk, B, K, bk, V),
    key_bias (nk, B|1, K|1, G|1, bk), bias (B|1, K|1, G|1, T|1, S|1), sinks (K, G).
    """

    query: Array
    key: Array
    value: Array
    key_bias: Array | None
    bias: Array | None
    sinks: Array | None


class Structure(NamedTuple):
    """Boolean and integer arrays, without gradients: mask as bias above, segment ids (nq, B, bq), (nk, B, bk)."""

    mask: Array | None
    segments: tuple[Array, Array] | None
    query_offset: Array | None


def block_size(length: int, target: int) -> int:
    """A block no longer than about `target` that cuts `length` with little padding."""
    count = max(1, -(-length // target))
    block = -(-length // count)
    return max(1, block if count == 1 else -(-block // 8) * 8)


def cut_into_blocks(call: Call, query_block: int, key_block: int) -> tuple[Blocks, Operands, Structure]:
    """Pads the sequence axes to whole blocks and moves the block axes to the front."""
    query_length, key_length = call.query.shape[1], call.key.shape[1]
    bq, bk = block_size(query_length, query_block), block_size(key_length, key_block)
    dtype = accumulation_dtype(call.query, call.key, call.value)

    def pad(x: Array, axis: int, block: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, -x.shape[axis] % block)
        return jnp.pad(x, widths)

    def cut(x: Array, block: int, to: int | None = None) -> Array:
        """(B, L, ...) -> (n, B, block, ...), the axis of the block then moved to `to`."""
        x = pad(x, 1, block)
        x = x.reshape(x.shape[0], x.shape[1] // block, block, *x.shape[2:])
        x = jnp.moveaxis(x, 1, 0)
        return x if to is None else jnp.moveaxis(x, 2, to)

    def dense(x: Array | None) -> Array | None:
        if x is None:
            return None
        x = pad(x, 3, bq) if x.shape[3] != 1 or query_length == 1 else x
        return pad(x, 4, bk) if x.shape[4] != 1 or key_length == 1 else x

    # In the accumulation dtype the scale goes onto the query once; in bf16 that would round, so it waits.
    query, scale = (call.query * call.scale, 1.0) if call.query.dtype == dtype else (call.query, call.scale)
    operands = Operands(
        query=cut(query, bq, 4),
        key=cut(call.key, bk, 3),
        value=cut(call.value, bk, 3),
        key_bias=None if call.key_bias is None else cut(call.key_bias.astype(dtype), bk, 4),
        bias=dense(call.bias),
        sinks=None if call.sinks is None else call.sinks.astype(dtype),
    )
    ids = call.segment_ids
    segments = None if ids is None else (cut(ids[0], bq), cut(ids[1], bk))
    structure = Structure(dense(call.mask), segments, call.query_offset)
    return Blocks(bq, bk, key_length, scale, call.logits_soft_cap, call.reach), operands, structure


def block_products(blocks: Blocks, x: Operands, i: Any, j: Any, *, keys_first: bool = False) -> Array:
    """Scaled and capped products of query block i and key block j.

    (B, K, G, bq, bk), or (B, K, bk, G, bq) with `keys_first`: the order in which two of the three products of
    the backward pass read them row by row.
    """
    query, key = x.query[i], x.key[j]
    dtype = accumulation_dtype(query, key)
    if keys_first:
        products = jnp.einsum("BKSH,BKGTH->BKSGT", key, query, preferred_element_type=dtype)
    else:
        products = jnp.einsum("BKGTH,BKSH->BKGTS", query, key, preferred_element_type=dtype)
    if blocks.scale != 1:
        products *= blocks.scale
    cap = blocks.logits_soft_cap
    return products if cap is None else cap * jnp.tanh(products / cap)


def through_cap(blocks: Blocks, grad_products: Array, products: Array) -> Array:
    """The gradient of products before the cap, from that of the capped `products`."""
    cap = blocks.logits_soft_cap
    return grad_products if cap is None else grad_products * (1 - (products / cap) ** 2)


def block_scores(
    blocks: Blocks,
    x: Operands,
    structure: Structure,
    products: Array,
    i: Any,
    j: Any,
    *,
    keys_first: bool = False,
) -> Array:
    """`block_products` with the biases added, -inf where a pair is not allowed."""

    def arrange(block: Array) -> Array:
        return jnp.moveaxis(block, -1, 2) if keys_first else block

    scores, dtype = products, products.dtype
    if x.key_bias is not None:
        scores = scores + arrange(x.key_bias[j][..., None, :])
    if x.bias is not None:
        scores = scores + arrange(dense_block(blocks, x.bias, i, j).astype(dtype))
    allowed = _allowed(blocks, structure, i, j)
    return scores if allowed is None else jnp.where(arrange(allowed), scores, -jnp.inf)


def _allowed(blocks: Blocks, structure: Structure, i: Any, j: Any) -> Array | None:
    """Which pairs of query block i and key block j may attend, with five axes as the scores have."""
    conditions = []
    key_index = j * blocks.key_block + jnp.arange(blocks.key_block)
    if blocks.key_length % blocks.key_block:
        conditions.append((key_index < blocks.key_length)[None, None, None, None])
    query_index = i * blocks.query_block + jnp.arange(blocks.query_block)
    near = in_reach(blocks.reach, query_index, key_index, structure.query_offset)
    if near is not None:
        conditions.append(near)
    if structure.segments is not None:
        query_ids, key_ids = structure.segments[0][i], structure.segments[1][j]
        conditions.append((query_ids[:, :, None] == key_ids[:, None, :])[:, None, None])
    if structure.mask is not None:
        conditions.append(dense_block(blocks, structure.mask, i, j))
    return functools.reduce(jnp.logical_and, conditions) if conditions else None


def dense_start(blocks: Blocks, x: Array, i: Any, j: Any) -> tuple[list[Any], list[int]]:
    """Where the part of a bias or mask for query block i and key block j begins, and its sizes."""
    starts, sizes = [0, 0, 0, 0, 0], list(x.shape)
    if x.shape[3] != 1:
        starts[3], sizes[3] = i * blocks.query_block, blocks.query_block
    if x.shape[4] != 1:
        starts[4], sizes[4] = j * blocks.key_block, blocks.key_block
    return starts, sizes


def dense_block(blocks: Blocks, x: Array, i: Any, j: Any) -> Array:
    """The part of a bias or mask for query block i and key block j."""
    starts, sizes = dense_start(blocks, x, i, j)
    return lax.dynamic_slice(x, starts, sizes)


def key_blocks(blocks: Blocks, structure: Structure, i: Any, nk: int) -> tuple[Any, Any]:
    """Start and end of the key blocks that query block i can see."""
    first = i * blocks.query_block
    keys = key_range(blocks.reach, first, first + blocks.query_block - 1, structure.query_offset)
    return _block_range(*keys, blocks.key_block, nk)


def query_blocks(blocks: Blocks, structure: Structure, j: Any, nq: int) -> tuple[Any, Any]:
    """Start and end of the query blocks that can see key block j."""
    first = j * blocks.key_block
    queries = query_range(blocks.reach, first, first + blocks.key_block - 1, structure.query_offset)
    return _block_range(*queries, blocks.query_block, nq)


def _block_range(first: Any, last: Any, block: int, count: int) -> tuple[Any, Any]:
    """Start and end of the blocks that hold elements `first` to `last`, where there are `count`."""
    start = 0 if first is None else jnp.clip(first // block, 0, count)
    end = count if last is None else jnp.clip(last // block + 1, 0, count)
    return start, end
