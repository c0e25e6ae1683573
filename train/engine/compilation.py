"""Training steps compiled ahead of time, one for each batch shape."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.cli.options import OptimizerOptions, RunOptions
from train.data.download import cache
from train.engine import loop, sharding
from train.engine.functional import Functional

TrainStep = Callable[[loop.TrainState, Any], tuple[loop.TrainState, loop.StepMetrics]]


def compile_steps(
    model: Functional,
    optimizer: Any,
    loss: loop.Loss,
    target: loop.TrainState,
    shardings: loop.TrainState,
    mesh: Mesh,
    batches: Sequence[Any],
    *,
    config: OptimizerOptions,
    seeds: Sequence[int],
    seed_mode: str,
) -> tuple[TrainStep, str]:
    """Compiles the training step for every batch shape and resolves --seed-mode auto.

    On accelerators auto is vmap unless its step needs more memory than there is. On CPU it is sequential: there a
    step of three seeds at d 128 takes 1.4 times as long under vmap.

    Args:
        model: the model as functions.
        optimizer: the update rule.
        loss: what is minimised.
        target: shapes and shardings of the state.
        shardings: of the state.
        mesh: devices.
        batches: one of every shape, as arrays or shape structs, the largest last; empty if nothing is trained.
        config: of the optimiser.
        seeds: of the run.
        seed_mode: auto, vmap or sequential.

    Returns:
        The step, of host batches as this process reads them, and the mode.
    """

    def compiled(mode: str, batch: Any) -> Any:
        step = loop.make_train_step(
            model, optimizer, loss, seeds=seeds, accumulate=config.accumulate, mode=mode
        )
        placed = sharding.batch_sharding(mesh)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), batch)
        outputs = (shardings, NamedSharding(mesh, PartitionSpec()))
        return jax.jit(step, donate_argnums=0, out_shardings=outputs).lower(target, batch).compile()

    mode = seed_mode
    if mode == "auto":
        mode = "sequential" if jax.default_backend() == "cpu" else "vmap"
    steps: dict[Any, Any] = {}
    for batch in reversed(batches):
        step = compiled(mode, batch)
        if seed_mode == "auto" and mode == "vmap" and len(seeds) > 1 and not fits(step):
            mode = "sequential"
            step = compiled(mode, batch)
        steps[_shapes(batch)] = step

    def train_step(state: loop.TrainState, batch: Any) -> tuple[loop.TrainState, loop.StepMetrics]:
        batch = sharding.put_batch(mesh, batch, config.batch_size)
        return steps[_shapes(batch)](state, batch)

    return train_step, mode


def start_process(options: RunOptions) -> None:
    """Joins the other processes of a run, and sets up the compilation cache: first thing in a process."""
    sharding.initialize_distributed(options.distributed)
    keep_compiled(options.compilation_cache)


def keep_compiled(wanted: bool) -> None:
    """Sets up JAX's persistent compilation cache, unless the environment or the caller has set one.

    To be called before anything is compiled: JAX looks for a cache once.

    Args:
        wanted: False for no cache, not even one of the environment.
    """
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
    elif jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache() / "xla"))


def fits(compiled: Any) -> bool:
    """Whether a compiled step needs less than 90 % of the device memory; True where that is unknown."""
    need = compiled.memory_analysis()
    if need is None:
        return True
    needed = need.argument_size_in_bytes + need.output_size_in_bytes - need.alias_size_in_bytes
    needed += need.temp_size_in_bytes
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit is None or needed < 0.9 * limit


def _shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))
