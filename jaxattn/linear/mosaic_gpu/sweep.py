"""One causal sweep over the tokens as a kernel: chunks by wgmma, with the state before a chunk on the chip."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxattn.linear.pallas.factors import LOWEST
from jaxattn.linear.sums import inverse_of

# Tokens a chunk, and the columns of the values that one block of threads works on: the rows of a wgmma.
CHUNK = SLICE = 64
# How arrays lie in registers: tiles of matrices, and vectors along their rows and along their columns.
_TILE = plgpu.Layout.WGMMA
_ROWS, _COLUMNS = _TILE.reduce(1), _TILE.reduce(0)


class Operands(NamedTuple):
    """What a sweep reads, or the buffers of two chunks of it in shared memory.

    Heads N are a multiple of those of every array; lengths are multiples of `CHUNK`, widths of `SLICE`.

    Attributes:
        query: (B, T, ·, D) bfloat16.
        key: (B, T, ·, D) bfloat16.
        value: (B, T, ·, E) bfloat16.
        weight: (B, ·, T) float32, log weights of the keys.
        reference: (B, ·, T) float32, subtracted from the log weights of all keys that a query sees; it is no less.
        query_term: (B, ·, T) float32, added to the products of a query with all keys; or None.
        key_term: (B, ·, T) float32, added to the products of a key with all queries; or None. Not both.
    """

    query: Any
    key: Any
    value: Any
    weight: Any
    reference: Any
    query_term: Any = None
    key_term: Any = None


def sweep(
    x: Operands, *, reverse: bool = False, divided: bool = False, dtype: Any = jnp.float32
) -> list[Array]:
    """Σ_j e^(weight_j − reference_i) (q_i · k_j + term) v_j over j <= i, or over j >= i in reverse, (B, T, N, E).

    With `divided` it is over Σ_j e^(weight_j − reference_i) q_i · k_j, whose inverse (B, N, T) comes second: 0 where
    nothing was summed.
    """
    batch, length, _, width = x.query.shape
    heads = max(array.shape[2] for array in x[:3])
    chunks, has_term = length // CHUNK, not (x.query_term is None and x.key_term is None)
    leaves, structure = jax.tree.flatten(x)

    def body(
        *refs: Any, buffers: Operands, pairs: Any, weighted: Any, state: Any, results: Any, ready: Any
    ) -> None:
        given, outputs = jax.tree.unflatten(structure, refs[: len(leaves)]), refs[len(leaves) :]
        b, h, part = (lax.axis_index(name) for name in ("batch", "head", "part"))
        columns = pl.ds(part * SLICE, SLICE)

        def tokens(n: Any) -> Any:
            return pl.ds((chunks - 1 - n if reverse else n) * CHUNK, CHUNK)

        def fetch(n: Any) -> None:
            for name, ref in given._asdict().items():
                if ref is not None:
                    where = _place(ref, heads, b, h, tokens(n))
                    source = ref.at[(*where, columns)] if name == "value" else ref.at[where]
                    slot = lax.rem(n, jnp.int32(2))
                    plgpu.copy_gmem_to_smem(source, getattr(buffers, name).at[slot], ready.at[slot])

        def step(n: Any, carry: Any) -> Any:
            n = lax.convert_element_type(n, jnp.int32)
            slot = lax.rem(n, jnp.int32(2))
            pl.when(n + 1 < chunks)(lambda: fetch(n + 1))
            plgpu.barrier_wait(ready.at[slot])
            chunk = jax.tree.map(lambda ref: ref.at[slot], buffers)
            found, carry = _attend(chunk, pairs, weighted, state, carry, reverse=reverse, divided=divided)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for ref, result in zip(results, found, strict=True):
                ref[...] = result.astype(ref.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(results[0], outputs[0].at[b, tokens(n), h, columns])
            if divided:  # every part finds the same

                @pl.when(part == 0)
                def _() -> None:
                    plgpu.copy_smem_to_gmem(results[1], outputs[1].at[b, h, tokens(n)])

            return carry

        state[...] = plgpu.layout_cast(jnp.zeros(state.shape, state.dtype), _TILE)
        plgpu.commit_smem()
        fetch(jnp.int32(0))
        total = plgpu.layout_cast(jnp.zeros((width, SLICE), jnp.float32), _TILE)
        vector = None
        if divided or has_term:
            size = width if divided else SLICE
            vector = plgpu.layout_cast(jnp.zeros((size,), jnp.float32), _COLUMNS)
        lax.fori_loop(0, chunks, step, (total, vector, jnp.float32(LOWEST)))
        plgpu.wait_smem_to_gmem(0)

    out_type = [jax.ShapeDtypeStruct((batch, length, heads, x.value.shape[3]), dtype)]
    results = [_matrix((CHUNK, SLICE), dtype)]
    if divided:
        out_type.append(jax.ShapeDtypeStruct((batch, heads, length), jnp.float32))
        results.append(plgpu.SMEM((CHUNK,), jnp.float32))
    kernel: Any = plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types={
            "buffers": _buffers(x),
            "pairs": _matrix((CHUNK, CHUNK)),
            "weighted": _matrix((CHUNK, SLICE)),
            "state": _matrix((width, SLICE)),
            "results": results,
            "ready": plgpu.Barrier(num_arrivals=len(leaves), num_barriers=2),
        },
        grid=(batch, heads, x.value.shape[3] // SLICE),
        grid_names=("batch", "head", "part"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        kernel_name="causal_linear_attention",
    )
    return kernel(*leaves)


def _place(ref: Any, heads: int, b: Any, h: Any, tokens: Any) -> tuple[Any, ...]:
    """The index of one head and some tokens of an array (B, T, ·, D) or (B, ·, T)."""
    of_tokens = len(ref.shape) == 4
    head = lax.div(h, jnp.int32(heads // ref.shape[2 if of_tokens else 1]))
    return (b, tokens, head) if of_tokens else (b, head, tokens)


def _matrix(shape: Sequence[int], dtype: Any = jnp.bfloat16) -> Any:
    """A buffer of matrices that lie as wgmma reads them, by rows of 128 bytes."""
    columns = 128 // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(
        shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128))
    )


def _buffers(x: Operands) -> Operands:
    matrices = [_matrix((2, CHUNK, width)) for width in (x.query.shape[3], x.key.shape[3], SLICE)]
    vectors = [None if array is None else plgpu.SMEM((2, CHUNK), jnp.float32) for array in x[3:]]
    return Operands(*matrices, *vectors)


def _load(ref: Any, layout: Any) -> Array:
    return plgpu.layout_cast(ref[...], layout)


def _wide(ref: Any) -> Array:
    return _load(ref, _TILE).astype(jnp.float32)


def _product(a: Any, b: Any) -> Array:
    def multiply(accumulator: Any) -> Array:
        plgpu.wgmma(accumulator, a, b)
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def _down(vector: Array, columns: int) -> Array:
    """A vector along the rows as the columns of a matrix."""
    return lax.broadcast_in_dim(vector, (*vector.shape, columns), (0,))


def _across(vector: Array, rows: int = CHUNK) -> Array:
    """A vector along the columns as the rows of a matrix."""
    return lax.broadcast_in_dim(vector, (rows, *vector.shape), (1,))


def _attend(
    x: Operands, pairs: Any, weighted: Any, state: Any, carry: Any, *, reverse: bool, divided: bool
) -> tuple[list[Array], Any]:
    """The results of one chunk, and the carry for the next.

    Args:
        x: the chunk.
        pairs: buffer for the weights of its pairs.
        weighted: buffer for its weighted values.
        state: the total in bfloat16, which is brought up to date.
        carry: Σ_j e^(weight_j − top) k_j v_j' over earlier keys; a vector, likewise of k_j if `divided`, of term ·
            v_j if there is a term; top.
        reverse: whether later keys are the earlier ones.
        divided: as in `sweep`.
    """
    total, vector, top = carry
    last = x.weight[0] if reverse else x.reference[CHUNK - 1]
    reference, transposed = _load(x.reference, _ROWS), x.key.transpose((1, 0))
    rows, columns = (plgpu.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), axis, layout=_TILE) for axis in (0, 1))
    weights = jnp.exp(_across(_load(x.weight, _COLUMNS)) - _down(reference, CHUNK))
    products = _product(x.query, transposed)
    if x.query_term is not None:
        products += _down(_load(x.query_term, _ROWS), CHUNK)
    if x.key_term is not None:
        products += _across(_load(x.key_term, _COLUMNS))
    products = jnp.where((rows <= columns) if reverse else (rows >= columns), products * weights, 0.0)
    pairs[...] = products.astype(pairs.dtype)
    before, after = jnp.exp(top - reference), jnp.exp(_load(x.weight, _ROWS) - last)
    added = _wide(x.value) * _down(after, SLICE)
    weighted[...] = added.astype(weighted.dtype)
    plgpu.commit_smem()
    near, far = _product(pairs, x.value), _product(x.query, state)
    if x.query_term is not None:
        far += _across(vector) * _down(_load(x.query_term, _ROWS), SLICE)
    if x.key_term is not None:
        far += _across(vector)
        added *= _down(_load(x.key_term, _ROWS), SLICE)
    results = [near + far * _down(before, SLICE)]
    if divided:
        weight = products.sum(axis=1) + (_wide(x.query) * _across(vector)).sum(axis=1) * before
        inverse = inverse_of(weight)
        results = [results[0] * _down(inverse, SLICE), inverse]
        added = _wide(x.key) * _down(after, x.key.shape[1])
    between = jnp.exp(top - last)
    total = total * between + _product(transposed, weighted)
    state[...] = total.astype(state.dtype)
    if vector is not None:
        vector = vector * between + added.sum(axis=0)
    return results, (total, vector, last)
