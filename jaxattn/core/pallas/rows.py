"""Fused kernels in programs that the compiler cuts among devices: every device attends for its own rows of the batch.

The compiler cannot partition a kernel, and arrays that are traced do not know how they are cut. Layers, which have
rules for it, say so by `batch_over`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.core.mesh import mesh_of

_BATCH_AXES: ContextVar[tuple[str, ...]] = ContextVar("batch_axes", default=())


class Rows(NamedTuple):
    """A mesh, and its axes over which the batch is cut; nothing else is."""

    mesh: AbstractMesh
    axes: tuple[str, ...]


@contextlib.contextmanager
def batch_over(axes: tuple[str, ...]) -> Iterator[None]:
    """Within, the batch of queries, keys and values is cut over these axes of the mesh."""
    token = _BATCH_AXES.set(axes)
    try:
        yield
    finally:
        _BATCH_AXES.reset(token)


def own_rows(call: Call) -> Rows | None:
    """How the rows of a call are cut, if that is all that is cut; None elsewhere, in `jax.shard_map` too."""
    mesh, axes = mesh_of(call.query), _BATCH_AXES.get()
    if mesh is None or not axes or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return None
    devices = math.prod(mesh.shape[axis] for axis in axes)
    return Rows(mesh, axes) if devices == mesh.size and call.query.shape[0] % devices == 0 else None


def on_rows(rows: Rows | None, run: Callable[..., Array], call: Call, *shared: Any) -> Array:
    """`run(call, *shared)`, an array (B, ...): with `rows` on every device for its part of the batch.

    Args:
        rows: from `own_rows`.
        run: a function of a call and of arrays that all rows share.
        call: checked arguments.
        shared: pytrees of arrays.
    """
    if rows is None:
        return run(call, *shared)
    batch = call.query.shape[0]
    cut = jax.tree.map(lambda x: P(rows.axes) if x.ndim and x.shape[0] == batch else P(), call)
    cut = cut.replace(sinks=None if call.sinks is None else P())  # (K, G)
    local = jax.shard_map(
        run,
        mesh=rows.mesh,
        in_specs=(cut, *jax.tree.map(lambda _: P(), shared)),
        out_specs=P(rows.axes),
        check_vma=False,  # what a kernel's results vary over is unknown
    )
    # In jit, as symbolic zeros of a custom_vjp are not there for a shard_map that runs operation by operation.
    return jax.jit(local)(call, *shared)
