"""The lines that describe a run on the terminal."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxattn_train.cli.options import TaskConfig
from jaxattn_train.engine.functional import compute_dtype


def describe_run(config: TaskConfig, mesh: Mesh, out: Path, lines: Iterable[str], unit: str) -> Sequence[str]:
    """The lines about model and data, and those about steps, devices and folder.

    Args:
        config: of the run.
        mesh: devices.
        out: run folder.
        lines: about model and data.
        unit: what a batch holds.
    """
    device = jax.devices()[0]
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    dtype = np.dtype(compute_dtype(config.model.dtype)).name
    return [
        *lines,
        f"training {config.optimizer.steps} steps of {config.optimizer.batch_size} {unit}, "
        f"seeds {', '.join(map(str, config.seeds()))}",
        f"devices  {jax.device_count()} {device.platform} ({device.device_kind}), {axes}, {dtype}",
        f"folder   {out}",
    ]
