"""Loop carries under `jax.shard_map`, which tracks the mesh axes that arrays vary over."""

from typing import Any

import jax
from jax import lax


def vary_like(start: Any, *inputs: Any) -> Any:
    """`start`, marked as varying over every mesh axis that one of the inputs varies over.

    A carry that starts from constants would otherwise change its type in the first iteration, and raise.
    """
    axes = frozenset().union(*map(varying_axes, jax.tree.leaves(inputs)))

    def mark(x: Any) -> Any:
        missing = tuple(sorted(axes - varying_axes(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, start)


def varying_axes(x: Any) -> frozenset[str]:
    """The mesh axes that an array varies over."""
    kind = jax.typeof(x)
    # Up to jax 0.9 an attribute of the type itself.
    return frozenset(kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma)
