"""Positive random features e^(W x + offset) relative to the largest of each token, made in one kernel."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxattn.linear.mosaic_gpu.chunk import CHUNK, COLUMNS, SLICE, across, down, load, matrix_buffer


@jax.custom_vjp
def exponentials(x: Array, matrix: Array, offset: Array) -> tuple[Array, Array]:
    """(values (B, T, N, M) bfloat16, logarithms (B, N, T) of what they were divided by, constants to a gradient).

    Args:
        x: (B, T, N, D) bfloat16, T a multiple of `CHUNK`, D and M of `SLICE`.
        matrix: W (heads, M, D) float32; heads divide N.
        offset: (heads, M) float32.
    """
    batch, length, heads, width = x.shape
    high = lax.reduce_precision(matrix, 8, 7)  # an XLA that keeps excess precision leaves this rounding alone
    parts = [part.astype(x.dtype) for part in (high, matrix - high)]
    group, number = heads // matrix.shape[0], matrix.shape[1]
    slices = [pl.ds(start, SLICE) for start in range(0, number, SLICE)]

    def body(*refs: Any, buffers: Any, result: Any, ready: Any) -> None:
        b, h, n = (lax.axis_index(name) for name in ("batch", "head", "chunk"))
        tokens, of = pl.ds(n * CHUNK, CHUNK), lax.div(h, jnp.int32(group))
        for ref, buffer, at in zip(refs, buffers, ((b, tokens, h), of, of, of), strict=False):
            plgpu.copy_gmem_to_smem(ref.at[at], buffer, ready)
        plgpu.barrier_wait(ready)
        token, first, second, added = buffers

        def logarithm(part: Any) -> Array:
            def multiply(accumulator: Any) -> Array:
                for matrix in (first, second):
                    plgpu.wgmma(accumulator, token, matrix.at[part].transpose((1, 0)))
                return accumulator[...]

            u = pl.run_scoped(multiply, plgpu.ACC((CHUNK, SLICE), jnp.float32))
            return u + across(load(added.at[part], COLUMNS))

        found = [logarithm(part) for part in slices]
        top = found[0].max(axis=1)
        for u in found[1:]:
            top = jnp.maximum(top, u.max(axis=1))
        for part, u in zip(slices, found, strict=True):
            result[0][:, part] = jnp.exp(u - down(top)).astype(x.dtype)
        result[1][...] = top
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(result[0], refs[4].at[b, tokens, h])
        plgpu.copy_smem_to_gmem(result[1], refs[5].at[b, h, tokens])
        plgpu.wait_smem_to_gmem(0)

    kernel: Any = plgpu.kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct((batch, length, heads, number), x.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ],
        scratch_types={
            "buffers": [
                matrix_buffer((CHUNK, width)),
                *[matrix_buffer((number, width))] * 2,
                plgpu.SMEM((number,), jnp.float32),
            ],
            "result": [matrix_buffer((CHUNK, number)), plgpu.SMEM((CHUNK,), jnp.float32)],
            "ready": plgpu.Barrier(num_arrivals=4),
        },
        grid=(batch, heads, length // CHUNK),
        grid_names=("batch", "head", "chunk"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        kernel_name="exponential_features",
    )
    return tuple(kernel(x, *parts, offset))


def _forward(x: Array, matrix: Array, offset: Array) -> tuple[Any, Any]:
    values, top = exponentials(x, matrix, offset)
    return (values, top), (x, matrix, values)


def _backward(kept: Any, grad: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    x, matrix, values = kept

    def by_head(x: Array) -> Array:
        return x.reshape(*x.shape[:2], matrix.shape[0], -1, x.shape[-1])

    of_u = by_head(grad[0].astype(jnp.float32) * values)
    of_x = jnp.einsum("bthgm,hmd->bthgd", of_u.astype(x.dtype), matrix.astype(x.dtype)).reshape(x.shape)
    of_matrix = jnp.einsum("bthgm,bthgd->hmd", of_u, by_head(x).astype(jnp.float32))
    return of_x, of_matrix, of_u.sum(axis=(0, 1, 3))


exponentials.defvjp(_forward, _backward)
