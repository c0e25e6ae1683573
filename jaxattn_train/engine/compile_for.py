"""What a training step would need on devices that this machine lacks, by their own compiler (--compile-for)."""

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import optax
from jax.sharding import Mesh

from jaxattn_train.cli.options import TaskConfig
from jaxattn_train.compiler.collectives import collectives
from jaxattn_train.compiler.flops import product_flops
from jaxattn_train.compiler.targets import Target, named_target
from jaxattn_train.compiler.traffic import hbm_bytes
from jaxattn_train.engine import loop, sharding
from jaxattn_train.engine.compilation import plan_state, trace_step
from jaxattn_train.engine.functional import Functional
from jaxattn_train.errors import UserError

Config = TypeVar("Config", bound=TaskConfig)
_GIB = 2**30


def for_target(config: Config) -> Config:
    """The configuration with the dtype that `auto` means on the device of --compile-for, if there is one."""
    if config.run.compile_for is None or getattr(config.model, "dtype", None) != "auto":
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))


def choose_devices(config: Config) -> tuple[Config, Target | None, Mesh]:
    """The devices of a run: those that are here, or those of --compile-for.

    Returns:
        (the configuration with what `auto` means on the target, the target or None, the mesh).

    Raises:
        UserError: an unknown device or topology, a compiler that is not installed, or numbers that do not divide.
    """
    target = None if config.run.compile_for is None else _target(config.run.compile_for)
    mesh = sharding.make_mesh(
        config.run.mesh,
        batch_size=config.optimizer.batch_size,
        accumulate=config.optimizer.accumulate,
        devices=None if target is None else target.devices,
    )
    return for_target(config), target, mesh


def _target(name: str) -> Target:
    jax.config.update("jax_platforms", "cpu")  # libtpu would look for a TPU here
    try:
        target = named_target(name)
        target.devices  # noqa: B018  (raises where there are none)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise UserError(f"--compile-for: {error}") from error
    return target


class Report(NamedTuple):
    """What a compiled training step needs, a device."""

    memory: int | None
    """Bytes at the peak; None if the compiler found that it does not fit."""
    parts: dict[str, int]
    """Of these, what parameters, optimiser and activations take."""
    seconds: float
    """To trace and compile."""
    flops: float
    """Of matrix products."""
    moved: int | None
    """Bytes read from and written to memory; None where they cannot be counted."""
    exchanged: dict[str, tuple[int, int]] | None
    """Collectives by kind: (times, bytes received)."""
    message: str = ""
    """Why something is None."""


def compile_step(
    config: TaskConfig,
    target: Target,
    model: Functional,
    mesh: Mesh,
    loss: loop.Loss,
    batches: Sequence[Any],
    optimizer: Callable[[Collection[str]], optax.GradientTransformation] | None = None,
) -> Report:
    """Compiles the training step for the target; arguments as for `report_step`."""
    plan = plan_state(config, model, mesh, optimizer)
    batch = max(batches, key=lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)))
    start = time.monotonic()
    traced = trace_step(
        model, plan, loss, mesh, batch,
        config=config.optimizer, seeds=config.seeds(),
        mode="sequential" if config.run.seed_mode == "sequential" else "vmap",
    )  # fmt: skip
    parts = {
        "parameters": _bytes_a_device(plan.target.params),
        "optimiser": _bytes_a_device(plan.target.opt_state),
    }
    flops = product_flops(traced.jaxpr) / mesh.size
    try:
        compiled = traced.lower(lowering_platforms=(target.platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        message = " ".join(str(error).split())[:300]
        return Report(None, parts, time.monotonic() - start, flops, None, None, message)
    seconds = time.monotonic() - start
    sizes: Any = compiled.memory_analysis()
    parts["activations"] = sizes.temp_size_in_bytes
    memory = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    memory += sizes.temp_size_in_bytes
    try:
        hlo = compiled.as_text()
        return Report(memory, parts, seconds, flops, hbm_bytes(hlo), collectives(hlo))
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        return Report(memory, parts, seconds, flops, None, None, message)


def report_step(
    config: TaskConfig,
    target: Target,
    model: Functional,
    mesh: Mesh,
    loss: loop.Loss,
    batches: Sequence[Any],
    optimizer: Callable[[Collection[str]], optax.GradientTransformation] | None = None,
) -> int:
    """Compiles the training step for the target, prints what it needs, and trains nothing.

    Args:
        config: of the run.
        target: what to compile for.
        model: the model as functions.
        mesh: of the target's devices.
        loss: what is minimised.
        batches: one of every shape; that with the most numbers is compiled.
        optimizer: names of the parameters that decay -> the update rule; None for `loop.make_optimizer`.

    Returns:
        0 if the step fits into the memory of a device, else 1.
    """
    print(f"target      {config.run.compile_for}: {mesh.size} devices, mesh {dict(mesh.shape)}")
    report = compile_step(config, target, model, mesh, loss, batches, optimizer)
    if report.memory is None:
        print(f"memory      DOES NOT FIT: {report.message}")
        _advise(config, mesh, report.parts, target)
        return 1
    fits = report.memory <= target.chip.memory
    print(
        f"memory      {_size(report.memory)} of {_size(target.chip.memory)} a device, "
        f"{'fits' if fits else 'DOES NOT FIT'}: "
        f"{', '.join(f'{name} {_size(size)}' for name, size in report.parts.items())}"
    )
    _describe_work(report, target)
    versions = ", ".join(" ".join(x) for x in target.versions().items())
    print(f"compiled    in {report.seconds:.1f} s with {versions}")
    if not fits:
        _advise(config, mesh, report.parts, target)
    return 0 if fits else 1


def _describe_work(report: Report, target: Target) -> None:
    """Prints what a step computes, moves and exchanges, and the time that published peaks imply."""
    times = {"matrix products": report.flops / target.chip.flops}
    line, exchanged = f"{report.flops / 1e12:.3g} TFLOPs of matrix products", "not counted"
    if report.moved is None or report.exchanged is None:
        line += f"; bytes not counted: {report.message}"
    else:
        times["memory"] = report.moved / target.chip.bandwidth
        line += f", {_size(report.moved)} read and written in memory"
        exchanged = "; ".join(
            f"{count} {kind}, {_size(size)}" for kind, (count, size) in sorted(report.exchanged.items())
        )
    bound = max(times, key=lambda name: times[name])
    print(f"a step      {line}, a device")
    print(f"roofline    {times[bound] * 1e3:.3g} ms by {bound}: predicted from published peaks, not measured")
    print(f"collectives {exchanged or 'none'}")


def _size(count: float) -> str:
    """Bytes in the unit that suits them."""
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.2f} MiB"


def _bytes_a_device(tree: Any) -> int:
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if hasattr(x.dtype, "itemsize")
    )


def _advise(config: TaskConfig, mesh: Mesh, own: dict[str, int], target: Target) -> None:
    """What would make the step fit, the least costly first."""
    state = own["parameters"] + own["optimiser"]
    accumulate, batch_size = config.optimizer.accumulate, config.optimizer.batch_size
    found = []
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if state > target.chip.memory / 4 and mesh.shape["fsdp"] < mesh.size:
        found.append(f"--mesh fsdp={mesh.size} (parameters and optimiser over all devices)")
    if getattr(config.model, "remat", None) == "none":
        found.append("--remat dots or --remat full (fewer activations, more computation)")
    if batch_size % (rows * 2 * accumulate) == 0:
        found.append(f"--accumulate {2 * accumulate} (half the activations, the same gradient)")
    elif batch_size > rows:
        found.append(f"a smaller --batch-size than {batch_size}")
    found.append("more devices, or devices with more memory")
    print(f"to fit      {'; '.join(found)}")
