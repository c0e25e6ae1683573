"""Typed variables: which arrays are learned, which decay, which are held, and the names of their axes.

The type of a variable says what training does with it:

- `nnx.Param`: learned. Weight decay applies to those of two dimensions or more (kernels, embeddings), not to vectors
  (biases and gains of Flax's layers). A bias of Flax that has two dimensions is made with the metadata
  `UNDECAYED`: `bias_metadata=axis_names(...) | UNDECAYED`.
- `UndecayedParam`: learned, but shrinking it towards 0 has no meaning: gains, logits, frequencies.
- `HeldVariable`, and Flax's own `nnx.BatchStat`: not changed by gradients: random draws, statistics, fixed tables.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[..., jax.Array]

UNDECAYED = {"decays": False}
# The leading axis of variables of blocks that are scanned.
LAYERS = "layers"


class UndecayedParam(nnx.Param):
    """A learned array that weight decay leaves alone."""


class HeldVariable(nnx.Variable):
    """An array that a module keeps and that gradients do not change."""


HELD = (HeldVariable, nnx.BatchStat)


def axis_names(*axes: str | None) -> dict[str, Any]:
    """Metadata that gives a variable one logical axis name, or None, per dimension.

    These are what `nnx.get_partition_spec` reads, and `nnx.logical_axis_rules` says which axis of a mesh each stands
    for. Nothing is sharded when the variable is made, which would need a mesh.

    Args:
        axes: the names.

    Returns:
        Keywords of a variable, or the `kernel_metadata` of a Flax layer.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> gain = nnx.Param(jnp.ones((2, 3)), **axis_names("heads", None))
        >>> with nnx.logical_axis_rules((("heads", "tensor"),)):
        ...     tuple(nnx.get_partition_spec(gain).get_value())
        ('tensor', None)
    """
    return {"out_sharding": axes, "eager_sharding": False}


def decays(variable: nnx.Variable) -> bool:
    """Whether weight decay applies to a variable; see the head of this file for the rule.

    Args:
        variable: of a module.

    Returns:
        True for learned arrays of two dimensions or more that are not `UndecayedParam`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> decays(nnx.Param(jnp.ones((2, 3)))), decays(nnx.Param(jnp.ones(3)))
        (True, False)
        >>> decays(UndecayedParam(jnp.ones((2, 3))))
        False
    """
    if not isinstance(variable, nnx.Param) or isinstance(variable, UndecayedParam):
        return False
    dimensions = sum(axis != LAYERS for axis in axes_of(variable))
    return dimensions >= 2 and variable.get_metadata().get("decays", True)


def parameter(
    init: Initializer,
    key: jax.Array,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: Any = jnp.float32,
    kind: type[nnx.Param] = nnx.Param,
) -> nnx.Param:
    """A parameter with one logical axis name (or None) per dimension; see `axis_names`.

    Args:
        init: initializer, `(key, shape, dtype) -> array`.
        key: random key.
        shape: of the parameter.
        axes: a name, or None, for every dimension.
        dtype: of the parameter.
        kind: `nnx.Param` or `UndecayedParam`.

    Returns:
        The variable.

    Raises:
        ValueError: `axes` does not name every dimension.

    Examples:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxattn.nn import parameter
        >>> kernel = parameter(nnx.initializers.ones, jax.random.key(0), (2, 3), ("embed", "heads"))
        >>> kernel.shape, tuple(nnx.get_partition_spec(kernel).get_value())
        ((2, 3), ('embed', 'heads'))
    """
    if len(shape) != len(axes):
        raise ValueError(f"axes must name every dimension of shape {shape}; got {axes}.")
    return kind(init(key, shape, dtype), **axis_names(*axes))


def axes_of(variable: nnx.Variable) -> tuple[str | None, ...]:
    """The logical axis names of one variable; None where a dimension has none."""
    return variable.get_metadata().get("out_sharding", (None,) * len(variable.shape))


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
    return jax.tree.map(axes_of, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
