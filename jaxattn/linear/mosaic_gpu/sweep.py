"""One causal sweep over the tokens as a kernel: chunks by wgmma, with the state before a chunk on the chip."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxattn.linear.mosaic_gpu.chunk import (
    CHUNK,
    COLUMNS,
    SLICE,
    TILE,
    Level,
    Operands,
    attend_chunk,
    matrix_buffer,
)
from jaxattn.linear.pallas.factors import LOWEST


def sweep(
    x: Operands, *, reverse: bool = False, divided: bool = False, dtype: Any = jnp.bfloat16
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
            found, carry = attend_chunk(
                chunk, pairs, weighted, state, carry, reverse=reverse, divided=divided
            )
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

        state[...] = plgpu.layout_cast(jnp.zeros(state.shape, state.dtype), TILE)
        plgpu.commit_smem()
        fetch(jnp.int32(0))
        total = plgpu.layout_cast(jnp.zeros((SLICE, SLICE), jnp.float32), TILE)
        vector = plgpu.layout_cast(jnp.zeros((SLICE,), jnp.float32), COLUMNS)
        slices = width // SLICE
        vectors = slices if divided else int(has_term)
        lowest = Level(jnp.float32(LOWEST), None if x.segment is None else jnp.float32(LOWEST))
        lax.fori_loop(0, chunks, step, ([total] * slices, [vector] * vectors, lowest))
        plgpu.wait_smem_to_gmem(0)

    out_type = [jax.ShapeDtypeStruct((batch, length, heads, x.value.shape[3]), dtype)]
    results = [matrix_buffer((CHUNK, SLICE), dtype)]
    if divided:
        out_type.append(jax.ShapeDtypeStruct((batch, heads, length), jnp.float32))
        results.append(plgpu.SMEM((CHUNK,), jnp.float32))
    kernel: Any = plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types={
            "buffers": _buffers(x),
            "pairs": matrix_buffer((CHUNK, CHUNK)),
            "weighted": matrix_buffer((CHUNK, SLICE)),
            "state": matrix_buffer((width, SLICE)),
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


def _buffers(x: Operands) -> Operands:
    matrices = [matrix_buffer((2, CHUNK, width)) for width in (x.query.shape[3], x.key.shape[3], SLICE)]
    vectors = [None if array is None else plgpu.SMEM((2, CHUNK), jnp.float32) for array in x[3:]]
    return Operands(*matrices, *vectors)
