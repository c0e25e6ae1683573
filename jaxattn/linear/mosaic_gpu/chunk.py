"""One chunk of a sweep inside the kernel: its pairs, what earlier chunks add, and their sums brought up to date."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxattn.linear.sums import inverse_of

# Tokens a chunk, and the columns of the values that one block of threads works on: the rows of a wgmma.
CHUNK = SLICE = 64
# Between log weights of different segments: more than float32 makes of any e^x, and exact times 2^24 segments.
APART = 2.0**100
# How arrays lie in registers: tiles of matrices, and vectors along their rows and along their columns.
TILE = plgpu.Layout.WGMMA
ROWS, COLUMNS = TILE.reduce(1), TILE.reduce(0)


class Operands(NamedTuple):
    """What a sweep reads, or the buffers of two chunks of it in shared memory.

    Heads N are a multiple of those of every array; lengths are multiples of `CHUNK`, widths of `SLICE`.

    Attributes:
        query: (B, T, ·, D) bfloat16.
        key: (B, T, ·, D) bfloat16.
        value: (B, T, ·, E) bfloat16.
        weight: (B, ·, T) float32, log weights of the keys.
        reference: (B, ·, T) float32, subtracted from the log weights of all keys that a query sees; it is no less.
        segment: (B, 1, T) float32, `APART` times numbers of segments that rise along the sweep; or None.
        query_term: (B, ·, T) float32, added to the products of a query with all keys; or None.
        key_term: (B, ·, T) float32, added to the products of a key with all queries; or None. Not both.
    """

    query: Any
    key: Any
    value: Any
    weight: Any
    reference: Any
    segment: Any = None
    query_term: Any = None
    key_term: Any = None


def matrix_buffer(shape: Sequence[int], dtype: Any = jnp.bfloat16) -> Any:
    """A buffer of matrices that lie as wgmma reads them, by rows of 128 bytes."""
    columns = 128 // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(
        shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128))
    )


def widen(x: Array) -> Array:
    """Zeros behind the last axis, up to a multiple of `SLICE`."""
    return jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, -x.shape[-1] % SLICE)])


def load(ref: Any, layout: Any) -> Array:
    """A vector or matrix in shared memory as registers hold it."""
    return plgpu.layout_cast(ref[...], layout)


def _wide(ref: Any) -> Array:
    return load(ref, TILE).astype(jnp.float32)


def _product(a: Any, b: Any) -> Array:
    def multiply(accumulator: Any) -> Array:
        plgpu.wgmma(accumulator, a, b)
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def down(vector: Array) -> Array:
    """A vector along the rows as every column of a matrix."""
    return plgpu.layout_cast(lax.broadcast_in_dim(vector, (CHUNK, CHUNK), (0,)), TILE)


def across(vector: Array) -> Array:
    """A vector along the columns as every row of a matrix."""
    return plgpu.layout_cast(lax.broadcast_in_dim(vector, (CHUNK, CHUNK), (1,)), TILE)


class Level(NamedTuple):
    """What weights are relative to: logarithms of them, and `Operands.segment` or None; scalars or arrays."""

    log: Any
    segment: Any

    def map(self, function: Any) -> "Level":
        """The function of both."""
        return Level(function(self.log), None if self.segment is None else function(self.segment))

    def over(self, other: "Level") -> Array:
        """The factor from this level to one that is no lower; 0 from one segment to a later one."""
        exponent = self.log - other.log
        if self.segment is not None:  # earlier segments may be higher
            exponent = jnp.minimum(exponent, 0.0) + (self.segment - other.segment)
        return jnp.exp(exponent)


def attend_chunk(
    x: Operands, pairs: Any, weighted: Any, state: Any, carry: Any, *, reverse: bool, divided: bool
) -> tuple[list[Array], Any]:
    """The results of one chunk, and the carry for the next.

    Args:
        x: the chunk.
        pairs: buffer for the weights of its pairs.
        weighted: buffer for its weighted values.
        state: the total in bfloat16, which is brought up to date.
        carry: Σ_j e^(weight_j − top) k_j v_j' over earlier keys, in slices of the rows; vectors, likewise of the
            slices of k_j if `divided`, one of term · v_j if there is a term; top, with the only segment summed.
        reverse: whether later keys are the earlier ones.
        divided: as in `sweep`.
    """
    totals, vectors, top = carry
    slices = [pl.ds(start, SLICE) for start in range(0, x.key.shape[1], SLICE)]
    keys, queries = Level(x.weight, x.segment), Level(x.reference, x.segment)
    last = keys.map(lambda ref: ref[0]) if reverse else queries.map(lambda ref: ref[CHUNK - 1])
    key, query = (x.map(partial(load, layout=ROWS)) for x in (keys, queries))
    rows, columns = (plgpu.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), axis, layout=TILE) for axis in (0, 1))
    weights = keys.map(lambda ref: across(load(ref, COLUMNS))).over(query.map(down))
    products = _product(x.query, x.key.transpose((1, 0)))
    if x.query_term is not None:
        products += down(load(x.query_term, ROWS))
    if x.key_term is not None:
        products += across(load(x.key_term, COLUMNS))
    products = jnp.where((rows <= columns) if reverse else (rows >= columns), products * weights, 0.0)
    pairs[...] = products.astype(pairs.dtype)
    before, after = top.over(query), key.over(last)
    added = _wide(x.value) * down(after)
    weighted[...] = added.astype(weighted.dtype)
    plgpu.commit_smem()
    near, far = _product(pairs, x.value), _product(x.query, state)
    if x.query_term is not None:
        far += across(vectors[0]) * down(load(x.query_term, ROWS))
    if x.key_term is not None:
        far += across(vectors[0])
        added *= down(load(x.key_term, ROWS))
    results = [near + far * down(before)]
    between = top.over(last)
    if divided:
        weight = products.sum(axis=1)
        for i, part in enumerate(slices):
            weight += (_wide(x.query.at[:, part]) * across(vectors[i])).sum(axis=1) * before
            added = _wide(x.key.at[:, part]) * down(after)
            vectors[i] = vectors[i] * between + added.sum(axis=0)
        inverse = inverse_of(weight)
        results = [results[0] * down(inverse), inverse]
    elif vectors:
        vectors = [vectors[0] * between + added.sum(axis=0)]
    for i, part in enumerate(slices):
        totals[i] = totals[i] * between + _product(x.key.at[:, part].transpose((1, 0)), weighted)
        state[part] = totals[i].astype(state.dtype)
    return results, (totals, vectors, last)
