"""Products and transposes inside a kernel, accumulated in float32: of matrices, or of stacks of them."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def _product(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    # One pass of the matrix unit is exact for bfloat16 operands; float32 takes six.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    first = a.ndim - 2
    stacks = tuple(range(first))
    numbers = (((axes[0] + first,), (axes[1] + first,)), (stacks, stacks))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


def nn(a: Array, b: Array) -> Array:
    """a b."""
    return _product(a, b, (1, 0))


def nt(a: Array, b: Array) -> Array:
    """a b'."""
    return _product(a, b, (1, 1))


def tn(a: Array, b: Array) -> Array:
    """a' b."""
    return _product(a, b, (0, 0))


def split(matrix: Array, dtype: jnp.dtype) -> list[Array]:
    """Arrays of this dtype that add up to a float32 matrix, to 2^-17 of it in bfloat16."""
    first = matrix.astype(dtype)
    if dtype == jnp.float32:
        return [first]
    return [first, (matrix - first.astype(jnp.float32)).astype(dtype)]


def _diagonal(size: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, (size, size), 0) == lax.broadcasted_iota(
        jnp.int32, (size, size), 1
    )


def as_column(row: Array) -> Array:
    """(…, 1, n) -> (…, n, 1)."""
    return jnp.where(_diagonal(row.shape[-1]), row, 0).sum(axis=-1, keepdims=True)


def as_row(column: Array) -> Array:
    """(n, 1) -> (1, n)."""
    return jnp.where(_diagonal(column.shape[0]), column, 0).sum(axis=0, keepdims=True)
