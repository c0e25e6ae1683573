"""The device mesh that arrays are part of, and vary over, as far as it is known while a program is traced."""

from typing import Any

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jaxtyping import Array


def mesh_of(tree: Any) -> AbstractMesh | None:
    """The mesh of the context, or else of the first array that has one; None without any."""
    arrays = (x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
    meshes = (jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in arrays))
    return next((mesh for mesh in meshes if not mesh.empty), None)


def is_partitioned(tree: Any) -> bool:
    """Whether the compiler may cut arrays among devices: there is a mesh, and `shard_map` has not cut them already.

    An axis of batch or heads must then be no axis of a loop: the compiler would gather it on every device.
    """
    mesh = mesh_of(tree)
    return mesh is not None and any(
        size > 1 and kind != AxisType.Manual
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    )


def is_alone(x: Array) -> bool:
    """Whether the program is known to be of one TPU: no compiler can partition the kernel.

    That is a mesh of one device, also of one that is compiled for ahead of time; the inside of a `jax.shard_map` with
    check_vma=False; or, where no mesh is known, a process with one TPU.
    """
    mesh = mesh_of(x)
    if mesh is None:
        return _num_tpus() == 1
    if AxisType.Manual in mesh.axis_types:
        return set(mesh.axis_types) == {AxisType.Manual} and not varying_axes(x)
    device = mesh.abstract_device
    return mesh.size == 1 and (device is None or device.platform == "tpu")


def _num_tpus() -> int:
    """TPUs of this process and those that it computes with, whatever the default backend."""
    try:
        return jax.device_count("tpu")
    except RuntimeError:  # there is no such backend
        return 0


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
