"""What the numbers of a run come from: devices, versions, memory; and numbers over seeds."""

import platform
import resource
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
from jax.sharding import Mesh

import jaxattn
from jaxattn_train.engine.metrics import mean, spread

DISTRIBUTIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def provenance(mesh: Mesh) -> dict[str, Any]:
    """The devices and versions that numbers come from."""
    return {
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "mesh": dict(mesh.shape),
        },
        "versions": {"python": platform.python_version(), "jaxattn": jaxattn.__version__}
        | {name: metadata.version(name) for name in DISTRIBUTIONS},
    }


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and the numbers themselves."""
    return {"mean": mean(values), "spread": spread(values), "per_seed": list(values)}


def peak_memory() -> dict[str, Any]:
    """The peak memory of this process so far.

    Returns:
        `bytes`, and `of`: "device" for the largest accelerator, or "process" for the resident set of the process
        (data and compilation included) where devices do not report it, as CPUs do not.

    Examples:
        >>> peak_memory()["bytes"] > 0
        True
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    if peaks:
        return {"bytes": max(peaks), "of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kibibytes
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "process"}
