"""Parameters that carry the names of their axes, for sharding by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[..., jax.Array]


def parameter(
    init: Initializer,
    key: jax.Array,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: Any = jnp.float32,
) -> nnx.Param:
    """A parameter with one logical axis name (or None) per dimension, kept in its metadata as `axes`.

    Flax's own `out_sharding` metadata shards at creation and demands a mesh, so the names live beside it.
    """
    if len(shape) != len(axes):
        raise ValueError(f"axes must name every dimension of shape {shape}; got {axes}.")
    return nnx.Param(init(key, shape, dtype), axes=axes)


def logical_axes(tree: Any) -> Any:
    """The logical axis names of every parameter of a module (or of an `nnx.State`).

    Args:
        tree: a module, or a state obtained by `nnx.state` / `nnx.split`.

    Returns:
        A state of the same structure holding a tuple of names (None where a dimension has none) in place of
        each array; a variable made without names gets `None` for each of its dimensions.

    Examples:
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, logical_axes
        >>> query = logical_axes(Attention(2, 8, rngs=nnx.Rngs(0)))["query"]
        >>> query["kernel"]
        ('embed', 'heads', 'head_dim')
    """
    state = nnx.state(tree) if isinstance(tree, nnx.Module) else tree

    def names(variable: nnx.Variable) -> tuple[str | None, ...]:
        return variable.get_metadata().get("axes", (None,) * jnp.ndim(variable[...]))

    return jax.tree.map(names, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
