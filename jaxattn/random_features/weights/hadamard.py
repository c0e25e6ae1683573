"""The Walsh–Hadamard transform in O(n log n)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# log2 of the largest factor: a product with a small dense factor keeps a matrix unit busy, where butterflies
# of size 2 are bound by memory; larger factors only add arithmetic.
_FACTOR_BITS = 5


def next_power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


@functools.lru_cache
def _hadamard_matrix(bits: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    for _ in range(bits):
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32), matrix)
    return matrix


def hadamard(x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """H_n x over the last axis, n a power of two, H_n the symmetric matrix of ±1 with H_n H_n = n I.

    H_n is the Kronecker product of smaller ones, each applied along an axis of its own.

    Examples:
        >>> import jax.numpy as jnp
        >>> hadamard(jnp.array([1.0, 2.0, 3.0, 4.0])).tolist()
        [10.0, -2.0, -4.0, 0.0]
    """
    bits = x.shape[-1].bit_length() - 1
    parts = -(-bits // _FACTOR_BITS)
    factors = [bits // parts + (i < bits % parts) for i in range(parts)]
    y = x.reshape(*x.shape[:-1], *(1 << factor for factor in factors))
    for factor in factors:
        matrix = jnp.asarray(_hadamard_matrix(factor), x.dtype)
        # ±1 are exact in bfloat16, so that HIGH, x in two parts, is as good as HIGHEST on a TPU at half the price.
        # The contracted axis goes last, so after all factors the axes are in order again.
        y = jnp.tensordot(y, matrix, axes=((x.ndim - 1,), (0,)), precision=jax.lax.Precision.HIGH)
    return y.reshape(x.shape)
