"""How much memory a run took."""

import resource
import sys
from typing import Any

import jax


def peak_memory() -> dict[str, Any]:
    """The most memory this process has had so far.

    Returns:
        `bytes`, and `of`: "device" for the largest of the accelerators, or "process" for all of the process (data
        and compilation included) where devices do not say, as CPUs do not.

    Examples:
        >>> peak_memory()["bytes"] > 0
        True
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    if peaks:
        return {"bytes": max(peaks), "of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024  # the one system that counts in bytes
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "process"}
