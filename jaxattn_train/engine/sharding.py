"""A device mesh of two axes: `data` splits the batch, `fsdp` splits the batch and the parameters."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.errors import UserError

# Which logical axis of a parameter is split over `fsdp`: the first of these that it has and that divides evenly.
FSDP_AXES = ("embed", "mlp", "vocab")
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
    fsdp: int, *, batch_size: int, accumulate: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over all devices.

    Args:
        fsdp: devices over which parameters are split; the rest of the devices form the `data` axis.
        batch_size: windows of a global batch.
        accumulate: micro-batches it is cut into; each must divide evenly over all devices.
        devices: None for all there are.

    Returns:
        Mesh with the axes `data` and `fsdp`.

    Raises:
        UserError: numbers that do not divide.
    """
    count = jax.device_count() if devices is None else len(devices)
    if count % fsdp:
        raise UserError(f"--fsdp must divide the number of devices, {count}; got {fsdp}.")
    if batch_size % (count * accumulate):
        raise UserError(
            f"--batch-size must be a multiple of devices x --accumulate = {count} x {accumulate}; got {batch_size}."
        )
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((count // fsdp, fsdp), BATCH_AXES, axis_types=axis_types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays (seeds, batch, ...): the batch over every device."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def param_specs(axes: Mapping[str, tuple[str | None, ...]], shapes: Mapping[str, Any], fsdp: int) -> dict:
    """How each parameter, with its leading seed axis, is split.

    Args:
        axes: logical axis names by parameter, without the seed axis.
        shapes: arrays or shape structs by parameter, without the seed axis.
        fsdp: size of that mesh axis.

    Returns:
        PartitionSpec by parameter.

    Examples:
        >>> shape = {"kernel": np.zeros((8, 6))}
        >>> param_specs({"kernel": ("mlp", "embed")}, shape, fsdp=2)["kernel"] == PartitionSpec(None, None, "fsdp")
        True
    """

    def spec(name: str) -> PartitionSpec:
        for wanted in FSDP_AXES:
            for dim, axis in enumerate(axes[name]):
                if fsdp > 1 and axis == wanted and shapes[name].shape[dim] % fsdp == 0:
                    return PartitionSpec(*[None] * (dim + 1), "fsdp")
        return PartitionSpec()

    return {name: spec(name) for name in shapes}


def gather_before_use(model: Functional, mesh: Mesh) -> Functional:
    """The same model with its parameters all-gathered where they are used.

    This is fully sharded data parallelism: devices store a part of the parameters and compute with all of them, each
    on its own rows. Without the constraint, the compiler would shard the activations like the parameters.
    """
    if mesh.shape["fsdp"] == 1:
        return model
    whole = NamedSharding(mesh, PartitionSpec())

    def gathered(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Params, *args: Any, **kwargs: Any) -> Any:
            return function(jax.lax.with_sharding_constraint(params, whole), *args, **kwargs)

        return call

    return model._replace(apply=gathered(model.apply), train_apply=gathered(model.train_apply))


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
