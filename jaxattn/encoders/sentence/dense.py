"""The linear layer that some sentence encoders have behind the pooling."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.nn.layers import linear

# By the names of torch's classes.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": nnx.relu,
    "GELU": lambda x: nnx.gelu(x, approximate=False),
    "SiLU": nnx.silu,
    "Sigmoid": nnx.sigmoid,
}


class Dense(nnx.Module):
    """activation(x W + b).

    Args:
        width_in: width of the input.
        width_out: width of the output.
        activation: a name in `ACTIVATIONS`.
        use_bias: whether there is a b.
        options: dtype, param_dtype and rngs.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        activation: str = "Tanh",
        use_bias: bool = True,
        **options: Any,
    ):
        check_choice("activation_function", activation, ACTIVATIONS)
        self.activation = activation
        self.linear = linear(width_in, width_out, ("embed", "embed"), use_bias=use_bias, **options)

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        """Applies the layer."""
        return ACTIVATIONS[self.activation](self.linear(x))
