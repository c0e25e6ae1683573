"""Compilation for accelerators that are not present, by their own compilers on this machine's CPU.

The TPU compiler comes with the package libtpu, XLA's GPU compiler with jax-cuda12-plugin and jax-cuda12-pjrt;
`make check-tpu` and `make check-gpu` install them into environments of their own.
"""

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxattn_train.compiler.flops import product_flops
from jaxattn_train.compiler.kernels import kernel_moves
from jaxattn_train.compiler.traffic import hbm_bytes

# What lets a CPU host load libtpu, several processes at a time.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Chip(NamedTuple):
    """Published figures of one device: memory in bytes, bfloat16 FLOPs a second, bytes a second from memory."""

    memory: int
    flops: float
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of device: its platform, a topology, the packages that compile for it, and its published figures."""

    platform: str
    topology: str
    packages: tuple[str, ...]
    chip: Chip

    @functools.cached_property
    def devices(self) -> list[Any]:
        """The devices of the topology.

        Raises:
            NotImplementedError: the compiler is not installed.
        """
        options: dict[str, Any] = {}
        if self.platform == "tpu":
            for name, value in _TPU_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
        else:
            description = pathlib.Path(__file__).with_name(f"{self.topology}.txtpb")
            options = {"target_config": description.read_text(), "topology": "1x1x1"}
        missing = [name for name in self.packages if _version(name) is None]
        if missing:
            raise NotImplementedError(
                f"{', '.join(missing)} is not installed: pip install {' '.join(missing)}."
            )
        topology = topologies.get_topology_desc(
            platform=self.platform, topology_name=self.topology, **options
        )
        return list(topology.devices)

    @property
    def sharding(self) -> NamedSharding:
        """Everything on one such device; raises as `devices` does."""
        return NamedSharding(Mesh(np.asarray(self.devices[:1]), ("device",)), PartitionSpec())

    def versions(self) -> dict[str, str]:
        """Versions of JAX and of the compiler."""
        return {name: version for name in ("jax", "jaxlib", *self.packages) if (version := _version(name))}


_GPU_PACKAGES = ("jax-cuda12-plugin", "jax-cuda12-pjrt")
TARGETS = {
    "v5e": Target("tpu", "v5e:1x1", ("libtpu",), Chip(16 * 2**30, 197e12, 819e9)),
    "v6e": Target("tpu", "v6e:1x1", ("libtpu",), Chip(32 * 2**30, 918e12, 1640e9)),
    "v5p": Target("tpu", "v5p:2x2x1", ("libtpu",), Chip(95 * 2**30, 459e12, 2765e9)),
    # JAX shows each of the chip's two cores as a device with half of everything.
    "tpu7x": Target("tpu", "tpu7x:1x1x1", ("libtpu",), Chip(96 * 2**30, 1153e12, 3690e9)),
    "h100": Target("cuda", "h100", _GPU_PACKAGES, Chip(80 * 10**9, 989e12, 3350e9)),
}


def named_target(name: str) -> Target:
    """A kind of device with a topology of its own, such as v5e:4x4; without one that of `TARGETS`.

    Raises:
        ValueError: an unknown kind, or a topology for a kind that has one only.

    Examples:
        >>> named_target("v5e:4x4").topology
        'v5e:4x4'
    """
    kind, _, topology = name.partition(":")
    if kind not in TARGETS or (topology and TARGETS[kind].platform != "tpu"):
        raise ValueError(
            f"must be one of {', '.join(TARGETS)}, on a TPU with a topology, v5e:4x4; got {name!r}."
        )
    target = TARGETS[kind]
    return dataclasses.replace(target, topology=name) if topology else target


def measure_compiled(
    name: str, function: Callable[..., Any], arguments: Sequence[Any], donated: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Compiles a program for a target and counts.

    Args:
        name: of `TARGETS`.
        function: what to compile.
        arguments: what it is called with, arrays or their shapes.
        donated: which of them results may take the place of.

    Returns:
        `bytes` read from and written to HBM, see `hbm_bytes`, None if the rounds of a loop depend on data, or if
        jaxlib cannot read what a newer compiler wrote (`bytes_unknown` says which);
        `flops` of matrix products; `ideal_bytes`, every argument and result once; `temp_bytes` of temporaries;
        `compile_s`, tracing included.

    Raises:
        NotImplementedError: the compiler is not installed.
    """
    target = TARGETS[name]

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=target.sharding)

    shapes = jax.tree.map(placed, tuple(arguments))
    start = time.perf_counter()
    fresh = jax.jit(
        lambda *args: function(*args), donate_argnums=donated
    )  # a new function: nothing is cached
    traced = fresh.trace(*shapes)
    compiled = traced.lower(lowering_platforms=(target.platform,)).compile()
    seconds = time.perf_counter() - start
    plan: Any = compiled.memory_analysis()
    whole = jax.tree.leaves((shapes, traced.out_info))
    moved: dict[str, Any]
    try:
        moved = {"bytes": hbm_bytes(compiled.as_text(), kernel_moves(traced.jaxpr))}
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # the latter: a text that jaxlib cannot read
        moved = {"bytes": None, "bytes_unknown": str(error)[:300]}
    return {
        **moved,
        "flops": product_flops(traced.jaxpr),
        "ideal_bytes": sum(x.size * x.dtype.itemsize for x in whole),
        "temp_bytes": plan.temp_size_in_bytes,
        "compile_s": round(seconds, 2),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
