"""Linear layers and normalisations whose parameters carry the names of their axes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

from jaxattn.core.parameters import Initializer, axis_names
from jaxattn.nn.sharding import axes_of_rules

DEFAULT_INIT = nnx.initializers.lecun_normal()


def check_sizes(*, dropout: float = 0.0, **sizes: int) -> None:
    """Raises unless the sizes are positive and the dropout is a probability below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1); got {dropout}.")


def linear(
    width_in: int,
    width_out: int,
    axes: tuple[str, str],
    *,
    use_bias: bool = True,
    kernel_init: Initializer = DEFAULT_INIT,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer; `axes` names the input and the output axis of its kernel."""
    return nnx.Linear(
        width_in,
        width_out,
        use_bias=use_bias,
        kernel_init=kernel_init,
        kernel_metadata=axis_names(*axes),
        bias_metadata=axis_names(*axes[1:]),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def layer_norm(
    width: int,
    *,
    epsilon: float = 1e-6,
    use_bias: bool = True,
    use_fast_variance: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.LayerNorm:
    """Layer normalisation of the last axis."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        use_bias=use_bias,
        use_fast_variance=use_fast_variance,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_metadata=axis_names("embed"),
        bias_metadata=axis_names("embed"),
        rngs=rngs,
    )


def product_of_matrices(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`lax.dot_general` of the last axes of x and the first of a kernel, as one product of two matrices.

    A last axis of 64 numbers fills half of a TPU's registers: a training step of 12 layers with softmax (D 768, N 12)
    moves 12 % more bytes with kernels (D, N, H) than with (D, N H). Where the width of heads is cut among devices, or
    JAX itself follows how a kernel is cut, it stays as it is.
    """
    if axes_of_rules(x, "head_dim") != ((),) or any(jax.typeof(kernel).sharding.spec):
        return lax.dot_general(x, kernel, dimension_numbers, **options)
    count = len(dimension_numbers[0][0])
    rest, columns = x.shape[: x.ndim - count], kernel.shape[count:]
    matrix = kernel.reshape(math.prod(kernel.shape[:count]), math.prod(columns))
    numbers = (((len(rest),), (0,)), ((), ()))
    out = lax.dot_general(x.reshape(*rest, matrix.shape[0]), matrix, numbers, **options)
    return out.reshape(*rest, *columns)
