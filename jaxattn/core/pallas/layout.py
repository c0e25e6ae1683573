"""Arrays as the kernels take them, and their blocks: one head and one chunk of tokens, columns in VMEM.

Widths that fill the lanes of a register (128) stay minor in HBM and are transposed on the way in; of others tokens
are minor, which is how XLA keeps such arrays on a TPU, so that rearranging them moves nothing.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxattn.core.pallas.choice import LANES

# Of the 64 MiB and more that a core has; 16 are the default, which wide features and large groups exceed.
_VMEM = 48 * 2**20


def compiler_params(chunks: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
    """Sequences and heads come in any order; chunks too if "parallel", else ("arbitrary") one after another."""
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", chunks), vmem_limit_bytes=_VMEM)


def is_natural(width: int) -> bool:
    """Whether tokens of this width are rows in HBM."""
    return width % LANES == 0


def arrange(x: Array) -> Array:
    """(B, T, *heads, D) -> (B, *heads, D, T), or (B, *heads, T, D) where that is natural."""
    x = jnp.moveaxis(x, 1, -2)
    return x if is_natural(x.shape[-1]) else jnp.swapaxes(x, -1, -2)


def restore(x: Array, width: int) -> Array:
    """The inverse of `arrange`."""
    return jnp.moveaxis(x if is_natural(width) else jnp.swapaxes(x, -1, -2), -2, 1)


def arranged(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """What `arrange` makes of an array (B, T, *heads, D)."""
    return jax.eval_shape(arrange, jax.ShapeDtypeStruct(shape, dtype))


def bias_row(bias: Array | None, key: Array) -> Array | None:
    """(B, K, 1, S) float32 of a key bias (B or 1, S, K or 1, 1) for keys (B, S, K, H)."""
    if bias is None:
        return None
    return jnp.moveaxis(jnp.broadcast_to(bias.astype(jnp.float32), (*key.shape[:3], 1)), 1, 3)


def bias_gradient(bias: Array | None, row: Array | None) -> Array | None:
    """The transpose of `bias_row`."""
    if bias is None or row is None:
        return None
    x = jnp.moveaxis(row, 3, 1)
    axes = tuple(i for i, (a, b) in enumerate(zip(bias.shape, x.shape, strict=True)) if a != b)
    return x.sum(axis=axes, keepdims=True).astype(bias.dtype)


class Blocks(NamedTuple):
    """The specifications of blocks, for kernels whose grid is (batch, key heads, chunks).

    Attributes:
        chunk: tokens C a chunk.
        place: of the chunk that the n-th step works on.
    """

    chunk: int
    place: Callable[[Any], Any] = lambda n: n

    def tokens(self, width: int, groups: int | None = None) -> pl.BlockSpec:
        """One chunk of an array made by `arrange`: (G, D, C) with groups, (D, C) without."""
        extra = () if groups is None else (groups,)
        block = (self.chunk, width) if is_natural(width) else (width, self.chunk)

        def index(b: Any, k: Any, n: Any) -> tuple[Any, ...]:
            where = (self.place(n), 0) if is_natural(width) else (0, self.place(n))
            return (b, k, *(0 for _ in extra), *where)

        return pl.BlockSpec((None, None, *extra, *block), index)

    def row(self, per_head: bool = True, count: int = 1) -> pl.BlockSpec:
        """One chunk of (B, K, count, T), or of (B, 1, count, T) that heads share: (count, C)."""
        return pl.BlockSpec(
            (None, None, count, self.chunk), lambda b, k, n: (b, k if per_head else 0, 0, self.place(n))
        )

    def state(self, *shape: int) -> pl.BlockSpec:
        """That of one chunk, of (B, K, chunks, *shape)."""
        return pl.BlockSpec(
            (None, None, None, *shape), lambda b, k, n: (b, k, self.place(n), *(0 for _ in shape))
        )

    def head(self, *shape: int) -> pl.BlockSpec:
        """That of one head, of (B, K, *shape); it stays in VMEM over all chunks."""
        return pl.BlockSpec((None, None, *shape), lambda b, k, n: (b, k, *(0 for _ in shape)))


def shared(x: Array, heads: int) -> pl.BlockSpec:
    """Of an array with an axis of heads, which divides the heads of keys, that serves all sequences."""
    ratio = heads // x.shape[0]
    rest = x.shape[1:]
    return pl.BlockSpec((None, *rest), lambda b, k, n: (lax.div(k, jnp.int32(ratio)), *(0 for _ in rest)))


def load(ref: Any, width: int, index: tuple[int, ...] = ()) -> Array:
    """(D, C) of a block of `Blocks.tokens`."""
    x = ref[(*index, ...)]
    return x.T if is_natural(width) else x


def store(ref: Any, x: Array, index: tuple[int, ...] = ()) -> None:
    """The inverse of `load`."""
    x = x.astype(ref.dtype)
    ref[(*index, ...)] = x.T if is_natural(x.shape[0]) else x
