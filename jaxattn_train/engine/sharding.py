"""A device mesh: `data` splits the batch, `fsdp` parameters too, `tensor` heads and MLPs, `sequence` tokens."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxattn.core.parameters import LAYERS
from jaxattn.nn.sharding import SHARDING_RULES, gather_parameters, parameter_spec
from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("data", "fsdp")


def initialize_distributed(wanted: bool) -> None:
    """Joins the other processes of a multi-host run; does nothing for a single process.

    Args:
        wanted: join without a coordinator address in the environment (on clusters that JAX detects).

    Raises:
        UserError: the other processes cannot be found.
    """
    if not (wanted or "JAX_COORDINATOR_ADDRESS" in os.environ) or jax.distributed.is_initialized():
        return
    numbers: dict[str, Any] = {
        argument: int(os.environ[variable])
        for argument, variable in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID"))
        if variable in os.environ
    }
    try:
        jax.distributed.initialize(**numbers)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"could not join the other processes: {error} Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID for each process, or run on a cluster that JAX recognises."
        ) from error


def make_mesh(
    axes: str, *, batch_size: int, accumulate: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over all devices.

    Args:
        axes: sizes, such as "fsdp=4,tensor=2"; `data` is what is left of the devices.
        batch_size: windows of a global batch.
        accumulate: micro-batches it is cut into; each must divide evenly over `data` and `fsdp`.
        devices: None for all there are.

    Returns:
        Mesh with the axes of `AXES`.

    Raises:
        UserError: unknown axes, or numbers that do not divide.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = parse_axes(axes)
    given = math.prod(sizes.values())
    if count % given or ("data" in sizes and count != given):
        must = "multiply to" if "data" in sizes else "divide"
        raise UserError(f"--mesh must {must} the number of devices, {count}; got {axes}.")
    sizes = {"data": count // given, **sizes}
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    rows = shape[0] * shape[1] * accumulate
    if batch_size % rows:
        raise UserError(
            f"--batch-size must be a multiple of data x fsdp x --accumulate = {shape[0]} x {shape[1]} x "
            f"{accumulate}; got {batch_size}."
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def parse_axes(text: str) -> dict[str, int]:
    """Sizes of the axes of a mesh.

    Raises:
        UserError: an unknown axis, one that is given twice, or a size that is no positive number.

    Examples:
        >>> parse_axes("fsdp=4,tensor=2")
        {'fsdp': 4, 'tensor': 2}
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise UserError(
                f"--mesh must be sizes of {', '.join(AXES)}, such as fsdp=4,tensor=2; got {text!r}."
            )
        sizes[name] = int(size)
    return sizes


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays (seeds, batch, ...): the batch over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def param_specs(axes: Mapping[str, tuple[str | None, ...]], shapes: Mapping[str, Any], mesh: Mesh) -> dict:
    """How each parameter, with its leading seed axis, is split.

    Args:
        axes: logical axis names by parameter, without the seed axis.
        shapes: arrays or shape structs by parameter, without the seed axis.
        mesh: devices.

    Returns:
        PartitionSpec by parameter.

    Raises:
        UserError: an axis of the mesh that would split no parameter.

    Examples:
        >>> shape, mesh = {"kernel": np.zeros((8, 6))}, jax.sharding.AbstractMesh((2,), ("fsdp",))
        >>> tuple(param_specs({"kernel": ("mlp", "embed")}, shape, mesh)["kernel"])
        (None, 'fsdp', None)
    """
    specs = {name: parameter_spec(axes[name], shapes[name].shape, mesh) for name in shapes}
    for axis, size in mesh.shape.items():
        if axis not in ("data", "sequence") and size > 1 and not any(axis in spec for spec in specs.values()):
            raise UserError(
                f"--mesh {axis}={size} splits no parameter: none has a size that is a multiple of it."
            )
    return {name: PartitionSpec(None, *spec) for name, spec in specs.items()}


def partitioned(model: Functional) -> Functional:
    """The same model with its activations cut among devices as `SHARDING_RULES` say.

    Axes of parameters over which the batch is cut too are gathered where they are used, layer by layer where layers
    are scanned: devices store a part of the parameters and compute with all of them, each on its own rows.
    """

    def ruled(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Params, *args: Any, **kwargs: Any) -> Any:
            with nnx.logical_axis_rules(SHARDING_RULES):
                # Those of scanned layers are gathered in the scan.
                whole = {name: x for name, x in params.items() if LAYERS not in model.axes[name]}
                gathered = gather_parameters(whole, {name: model.axes[name] for name in whole})
                return function(params | gathered, *args, **kwargs)

        return call

    return model._replace(apply=ruled(model.apply), train_apply=ruled(model.train_apply))


def tree_shardings(tree: Any, specs: Mapping[str, PartitionSpec], mesh: Mesh) -> Any:
    """Shardings of a whole training state: a leaf whose last key is a parameter's name is split like that parameter.

    The optimiser keeps its moments under the parameters' names, so they are split with them; the rest is replicated.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = str(getattr(path[-1], "key", "")) if path else ""
        return NamedSharding(mesh, specs.get(name, PartitionSpec()) if leaf.ndim else PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of the global batch that this process has to read; all of a mesh that exists elsewhere."""
    places = NamedSharding(mesh, PartitionSpec(BATCH_AXES)).addressable_devices_indices_map((batch_size,))
    ranges = [place[0].indices(batch_size) for place in places.values() if place is not None]
    if not ranges:
        return slice(0, batch_size)
    return slice(min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges))


def put_batch(mesh: Mesh, batch: Any, batch_size: int) -> Any:
    """The global batch over all devices: each array from the rows (seeds, rows, ...) that this process read."""

    def put(array: np.ndarray) -> jax.Array:
        shape = (array.shape[0], batch_size, *array.shape[2:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh), array, shape)

    return jax.tree.map(put, batch)


def put_rows(mesh: Mesh, arrays: Any) -> Any:
    """An array, or a tree of them, that every process holds whole, split by the first axis over all devices."""
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def put(array: np.ndarray) -> jax.Array:
        local = array[local_rows(mesh, len(array))]
        return jax.make_array_from_process_local_data(sharding, local, array.shape)

    return jax.tree.map(put, arrays)


def put_replicated(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """The same array on every device of every process."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec()), array, array.shape)


def first_seed(mesh: Mesh, params: Params) -> Params:
    """The parameters of the first seed, whole, on this process's first device."""
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(params)
    return {name: jnp.asarray(np.asarray(value)[0]) for name, value in whole.items()}


def settle(result: Any) -> None:
    """Blocks on `result` where several CPU devices share the threads of this process; no-op elsewhere.

    With many computations in flight on such devices, a collective may find no free thread, and the runtime then
    aborts the process.
    """
    if jax.default_backend() == "cpu" and jax.local_device_count() > 1:
        jax.block_until_ready(result)
