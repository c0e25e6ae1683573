"""Training steps compiled ahead of time, one for each batch shape."""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxattn_train.cli.options import OptimizerOptions, RunOptions, TaskConfig
from jaxattn_train.data.download import cache
from jaxattn_train.engine import loop, sharding
from jaxattn_train.engine.functional import Functional

TrainStep = Callable[[loop.TrainState, Any], tuple[loop.TrainState, loop.StepMetrics]]


class StatePlan(NamedTuple):
    """A training state before it exists."""

    optimizer: optax.GradientTransformation
    """The update rule."""
    init: Callable[[], loop.TrainState]
    """Makes the state of step 0."""
    shardings: loop.TrainState
    """Where its arrays go."""
    target: loop.TrainState
    """Shapes, dtypes and shardings."""


def plan_state(
    config: TaskConfig,
    model: Functional,
    mesh: Mesh,
    optimizer: Callable[[Collection[str]], optax.GradientTransformation] | None = None,
) -> StatePlan:
    """The state of a run: what it holds and how it is split over the devices.

    Args:
        config: of the run.
        model: the model as functions.
        mesh: devices.
        optimizer: names of the parameters that decay -> the update rule; None for `loop.make_optimizer`.
    """
    make_optimizer = optimizer or functools.partial(loop.make_optimizer, config.optimizer)
    rule = make_optimizer(model.decayed)
    init = loop.make_init(model, rule, config.seeds())
    shapes = jax.eval_shape(init)
    specs = sharding.param_specs(model.axes, model.shapes, mesh)
    shardings = sharding.tree_shardings(shapes, specs, mesh)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return StatePlan(rule, init, shardings, target)


def trace_step(
    model: Functional,
    plan: StatePlan,
    loss: loop.Loss,
    mesh: Mesh,
    batch: Any,
    *,
    config: OptimizerOptions,
    seeds: Sequence[int],
    mode: str,
) -> Any:
    """The training step for batches of one shape, traced; `lower` and `compile` come next."""
    step = loop.make_train_step(
        model, plan.optimizer, loss, seeds=seeds, accumulate=config.accumulate, mode=mode
    )
    placed = sharding.batch_sharding(mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), batch)
    outputs = (plan.shardings, NamedSharding(mesh, PartitionSpec()))
    return jax.jit(step, donate_argnums=0, out_shardings=outputs).trace(plan.target, batch)


def compile_steps(
    model: Functional,
    plan: StatePlan,
    loss: loop.Loss,
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
        plan: of the state.
        loss: what is minimised.
        mesh: devices.
        batches: one of every shape, as arrays or shape structs, the largest last; empty if nothing is trained.
        config: of the optimiser.
        seeds: of the run.
        seed_mode: auto, vmap or sequential.

    Returns:
        The step, of host batches as this process reads them, and the mode.
    """

    def compiled(mode: str, batch: Any) -> Any:
        traced = trace_step(model, plan, loss, mesh, batch, config=config, seeds=seeds, mode=mode)
        return traced.lower().compile()

    mode = seed_mode
    if mode == "auto":
        mode = "sequential" if mesh.devices.flat[0].platform == "cpu" else "vmap"
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
