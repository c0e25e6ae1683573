"""Activations by the names that config.json gives them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nnx.gelu, approximate=False),
    "gelu_python": functools.partial(nnx.gelu, approximate=False),
    "gelu_new": functools.partial(nnx.gelu, approximate=True),
    "gelu_fast": functools.partial(nnx.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nnx.gelu, approximate=True),
    "quick_gelu": lambda x: x * nnx.sigmoid(1.702 * x),
    "relu": nnx.relu,
    "silu": nnx.silu,
    "swish": nnx.silu,
    "tanh": jnp.tanh,
}
