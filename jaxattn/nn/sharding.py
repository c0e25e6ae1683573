"""Logical axes of parameters and activations, and the table that says over which axes of a mesh each is cut."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from flax.core.spmd import get_logical_axis_rules
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxattn.core.mesh import mesh_of
from jaxattn.core.parameters import LAYERS

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]
Path = tuple[NamedSharding, ...]

# The batch over `data` and `fsdp`, tokens over `sequence`; parameters by width over `fsdp`, by heads and by the width
# of MLPs over `tensor`. An axis that is cut like the batch is gathered where parameters are used: fully sharded data
# parallelism.
SHARDING_RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("sequence", "sequence"),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    # Named for tables that cut them; Flax takes a name without a rule for an axis of the mesh.
    ("head_dim", None),
    ("layers", None),
    ("length", None),
    ("classes", None),
)


def partition_spec(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: Rules = SHARDING_RULES,
    *,
    gathered: bool = False,
) -> PartitionSpec:
    """How an array is cut among the devices of a mesh.

    Args:
        names: a logical axis, or None, for every dimension.
        shape: of the array; a dimension that does not divide is not cut.
        mesh: devices; rules for axes that it lacks do nothing.
        rules: logical axis -> axis or axes of the mesh.
        gathered: leave out the axes that the batch is cut over.

    Returns:
        One entry per dimension; no axis of the mesh occurs twice.

    Examples:
        >>> import jax
        >>> mesh = jax.sharding.AbstractMesh((4, 2), ("fsdp", "tensor"))
        >>> tuple(partition_spec(("embed", "mlp"), (16, 64), mesh))
        ('fsdp', 'tensor')
        >>> tuple(partition_spec(("embed", "mlp"), (16, 64), mesh, gathered=True))
        (None, 'tensor')
    """
    table = {name: (axes,) if isinstance(axes, str) else axes or () for name, axes in rules}
    used = set(table.get("batch", ())) if gathered else set()
    entries: list[Any] = []
    for name, size in zip(names, shape, strict=True):
        axes = [axis for axis in table.get(name or "", ()) if axis in mesh.shape and axis not in used]
        count = functools.reduce(lambda product, axis: product * mesh.shape[axis], axes, 1)
        if count == 1 or size % count:
            axes = []
        used.update(axes)
        entries.append(axes[0] if len(axes) == 1 else tuple(axes) or None)
    return PartitionSpec(*entries)


def parameter_spec(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: Rules = SHARDING_RULES,
) -> PartitionSpec:
    """How a parameter is stored: by `partition_spec`, but what is gathered for use is cut along a major dimension.

    Compilers scatter sums, which gradients are, along the first dimensions alone, and would sum everything on all
    devices for the last.

    Args:
        names: a logical axis, or None, for every dimension.
        shape: of the parameter.
        mesh: devices.
        rules: logical axis -> axis or axes of the mesh.

    Returns:
        One entry per dimension, with the axes of `partition_spec`.

    Examples:
        >>> import jax
        >>> mesh = jax.sharding.AbstractMesh((4, 2), ("fsdp", "tensor"))
        >>> tuple(parameter_spec(("mlp", "embed"), (64, 16), mesh))
        (('tensor', 'fsdp'), None)
    """
    stored, used = (
        partition_spec(names, shape, mesh, rules, gathered=gathered) for gathered in (False, True)
    )
    before = {axis for entry in used for axis in _axes(entry)}
    gathered = tuple(axis for entry in stored for axis in _axes(entry) if axis not in before)
    for dimension, (name, size, entry) in enumerate(zip(names, shape, used, strict=True)):
        axes = (*_axes(entry), *gathered)
        if name != LAYERS and gathered and size % math.prod(mesh.shape[axis] for axis in axes) == 0:
            cut = axes[0] if len(axes) == 1 else axes
            return PartitionSpec(*used[:dimension], cut, *used[dimension + 1 :])
    return stored


def constrain(x: Array, *names: str | None) -> Array:
    """`x` cut as the rules of `nnx.logical_axis_rules` say, in a program over a mesh; elsewhere `x` itself.

    Args:
        x: an activation.
        names: a logical axis, or None, for every dimension.
    """
    mesh, rules = _automatic_mesh(x), get_logical_axis_rules()
    if mesh is None or not rules:
        return x
    spec = partition_spec(names, x.shape, mesh, rules)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def gather_parameters(tree: Any, names: Any) -> Any:
    """Parameters with the axes gathered that the batch is cut over; their gradients are scattered over these again.

    Args:
        tree: arrays.
        names: the logical axes of each, as a tree of tuples.
    """
    rules = get_logical_axis_rules()
    mesh = _automatic_mesh(tree)
    if mesh is None or not rules:
        return tree

    def gather(x: Array, names: Sequence[str | None]) -> Array:
        stored = parameter_spec(names, x.shape, mesh, rules)
        used = partition_spec(names, x.shape, mesh, rules, gathered=True)
        return x if stored == used else _gathered(x, _path(mesh, stored, used))

    return jax.tree.map(gather, tree, names)


def sequence_axis(x: Array) -> tuple[AbstractMesh, str] | None:
    """The mesh, and its axis over which the rules cut the tokens of activations; None where they are whole."""
    mesh, (axes,) = _automatic_mesh(x), axes_of_rules(x, "sequence")
    if len(axes) > 1:
        raise ValueError(f"the rule of 'sequence' must name one axis of the mesh; got {axes}.")
    return (mesh, axes[0]) if mesh is not None and axes else None


def axes_of_rules(x: Array, *names: str) -> tuple[tuple[str, ...], ...]:
    """The axes of the mesh over which the rules cut each of these logical axes of an activation, if they divide."""
    mesh, rules = _automatic_mesh(x), get_logical_axis_rules()
    if mesh is None or not rules:
        return ((),) * len(names)
    return tuple(map(_axes, partition_spec(names, (mesh.size,) * len(names), mesh, rules)))


def _automatic_mesh(tree: Any) -> AbstractMesh | None:
    """The mesh of a program that the compiler partitions; None in `shard_map` and under explicit axes."""
    mesh = mesh_of(tree)
    return mesh if mesh is not None and all(kind == AxisType.Auto for kind in mesh.axis_types) else None


def _path(mesh: AbstractMesh, stored: PartitionSpec, used: PartitionSpec) -> Path:
    """From how a parameter is stored to how it is used: in one step, or in two where devices are many.

    The second is on a finer mesh, where the first factor of an axis has its name.
    """
    ends = NamedSharding(mesh, stored), NamedSharding(mesh, used)
    kept = {axis for entry in used for axis in _axes(entry)}
    gathered = [axis for entry in stored for axis in _axes(entry) if axis not in kept]
    count = math.prod(mesh.shape[axis] for axis in gathered)
    if len(stored) == 1 or count <= _devices_a_step(mesh):
        return ends
    first, room = dict(mesh.shape), math.isqrt(count)
    for axis in gathered:
        size = first[axis]
        first[axis] = max(factor for factor in range(1, room + 1) if size % factor == 0)
        room = room // size or 1
    sizes = {}
    for axis, size in mesh.shape.items():
        sizes[axis] = first[axis]
        if axis in gathered:  # the rest of it comes next, so that no device moves along another axis
            sizes[f"{axis} inner"] = size // first[axis]
    types = (AxisType.Auto,) * len(sizes)
    finer = AbstractMesh(tuple(sizes.values()), tuple(sizes), types, abstract_device=mesh.abstract_device)
    return ends[0], NamedSharding(finer, stored), ends[1]


def _devices_a_step(mesh: AbstractMesh) -> int:
    """Among how many devices one step gathers and scatters.

    libtpu 0.0.52 sums gradients whole on all chips of a slice of more than 32, and gathers small parts as sums.
    """
    on_tpu = mesh.abstract_device is not None and mesh.abstract_device.platform == "tpu"
    return 32 if on_tpu else mesh.size


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: Array, path: Path) -> Array:
    return _constrained(x, path[1:])


def _gathered_forward(x: Array, path: Path) -> tuple[Array, None]:
    return _constrained(x, path[1:]), None


def _gathered_backward(path: Path, _: None, gradient: Array) -> tuple[Array]:
    # Partial sums on every device become sums of one part each: a reduce-scatter.
    stored, shape, back = path[0], gradient.shape, path[-2::-1]
    cut = [entry for entry in stored.spec if entry]
    parts = math.prod(stored.mesh.shape[axis] for entry in cut for axis in _axes(entry))
    many_columns = len(path) > 2 and len(cut) == 1 and not stored.spec[0] and parts % shape[0] == 0
    if many_columns and math.prod(shape[:-1]) % parts == 0:
        # Scattered as rows of a matrix; then the parts are exchanged.
        rows = tuple(NamedSharding(step.mesh, PartitionSpec(cut[0])) for step in back)
        gradient = _constrained(gradient.reshape(-1, shape[-1]), rows).reshape(shape)
        back = (stored,)
    return (_constrained(gradient, back),)


def _constrained(x: Array, path: Path) -> Array:
    return functools.reduce(jax.lax.with_sharding_constraint, path, x)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _axes(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
