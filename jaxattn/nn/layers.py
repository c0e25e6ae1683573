"""Linear layers and normalisations whose parameters carry the names of their axes."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxattn.core.parameters import Initializer, axis_names

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
