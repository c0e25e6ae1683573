"""Measured peak memory of one run of one case, in a fresh process.

On a GPU the allocator counts (`peak_bytes_in_use`). On a CPU the operating system does: the resident set is noted
after imports, inputs, compilation and a return of free memory to the system, its high-water mark is reset, and the
mark after the run minus the note is the peak. Where the mark cannot be reset, `ru_maxrss` before and after take its
place, which is a lower bound.
"""

import ctypes
import gc
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.measure.prepared import Prepared, failure

ROOT = pathlib.Path(__file__).resolve().parents[2]
_MARK = "MEASURED "


def peak_in_fresh_process(request: Any, timeout_s: float = 900) -> dict[str, Any]:
    """The outcome of `python -m benchmarks _memory REQUEST`, which calls `print_peak`.

    Args:
        request: what JSON can hold; it names the case.
        timeout_s: gives a case up that takes longer, in seconds.

    Returns:
        `status` ("ok", "out_of_memory", "unsupported", "timeout" or "error") with `message`, or with `platform`,
        `peak_bytes` and `peak_method`.
    """
    with tempfile.TemporaryDirectory() as cache:
        # A second attempt finds its executables here: on a GPU, what compilation allocated hides the peak of the run.
        env = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        result: dict[str, Any] = {}
        for _ in range(2):
            result = _child(json.dumps(request), env, timeout_s)
            if not result.get("peak_is_upper_bound"):
                break
        return result


def _child(request: str, env: dict[str, str], timeout_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", "_memory", request]
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"status": "timeout", "message": f"the memory run took longer than {timeout_s:g} s."}
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    if done.returncode == -9:
        return {"status": "out_of_memory", "message": "the system killed the process."}
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return failure(done.stderr) | {"message": lines[-1][:300]}


def print_peak(prepare: Callable[[], Prepared]) -> None:
    """In the fresh process: measures what `prepare` compiles and prints one line of JSON."""
    try:
        result = _peak(prepare())
    except Exception as error:
        result = failure(error)
    print(_MARK + json.dumps(result))


def _peak(prepared: Prepared) -> dict[str, Any]:
    platform = jax.default_backend()
    what = prepared.setup()
    gc.collect()
    result: dict[str, Any] = {"status": "ok", "platform": platform}
    if platform == "cpu":
        _return_free_memory()
        resettable = _reset_high_water_mark()
        before = _status_bytes("VmRSS") if resettable else _max_rss_bytes()
        prepared.run(what, 1)
        after = _status_bytes("VmHWM") if resettable else _max_rss_bytes()
        method = "VmHWM" if resettable else "ru_maxrss"
        return result | {"peak_bytes": max(0, after - before), "peak_method": method}
    if "torch" in sys.modules:  # only the peers written in PyTorch import it
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        prepared.run(what, 1)
        peak = torch.cuda.max_memory_allocated() - before
        return result | {"peak_bytes": peak, "peak_method": "torch.cuda.max_memory_allocated"}
    device = jax.devices()[0]
    start: Any = device.memory_stats()
    prepared.run(what, 1)
    end: Any = device.memory_stats()
    return result | {
        "peak_bytes": end["peak_bytes_in_use"] - start["bytes_in_use"],
        "peak_method": "device.memory_stats",
        "peak_is_upper_bound": end["peak_bytes_in_use"] == start["peak_bytes_in_use"],
    }


def _return_free_memory() -> None:
    """Hands memory that malloc keeps back to the system, so that the run has to ask for its own."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library: the peak is then a lower bound


def _reset_high_water_mark() -> bool:
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        mark, now = _status_bytes("VmHWM"), _status_bytes("VmRSS")
    except OSError:
        return False
    return mark - now < 2**24


def _status_bytes(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}.")


def _max_rss_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
