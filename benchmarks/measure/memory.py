"""Peak memory, measured: one run of one case in a fresh process.

On a GPU the allocator counts (`peak_bytes_in_use`). On a CPU the operating system does: the resident set is noted
after imports, inputs, compile and a return of free memory to the system, its high-water mark is reset, and the mark
after the run minus the note is the peak. Where the mark cannot be reset, `ru_maxrss` before and after take its place,
which is a lower bound.
"""

import ctypes
import dataclasses
import gc
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.suites.cases import Case
from benchmarks.suites.prepared import IN_TORCH, TooLarge, prepare

ROOT = pathlib.Path(__file__).resolve().parents[2]
_MARK = "MEASURED "


def measure_in_fresh_process(
    case: Case, limit_bytes: int | None = None, timeout_s: float = 900
) -> dict[str, Any]:
    """Peak memory of one run of `case` beyond its inputs, as part of a result row.

    Args:
        case: what to run.
        limit_bytes: gives a case up whose compiled plan needs more.
        timeout_s: gives a case up that takes longer, in seconds.

    Returns:
        `status` ("ok", "out_of_memory", "unsupported", "timeout" or "error") with `message`, or with `platform`,
        `peak_bytes` and `peak_method`.
    """
    with tempfile.TemporaryDirectory() as cache:
        # A second try finds its executables here: on a GPU, what compiling allocated hides the peak of the run.
        env = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        request = json.dumps({"case": dataclasses.asdict(case), "limit_bytes": limit_bytes})
        result: dict[str, Any] = {}
        for _ in range(2):
            result = _child(request, env, timeout_s)
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
    return {"status": failure_status(done.stderr), "message": lines[-1][:300]}


def failure_status(text: str) -> str:
    """How an error is recorded, by its text."""
    if any(
        sign in text
        for sign in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "MemoryError", "bad_alloc")
    ):
        return "out_of_memory"
    return "error"


def measure_here(request: str) -> None:
    """The fresh process: measures and prints one line of JSON."""
    asked = json.loads(request)
    case = Case(**asked["case"])
    try:
        result = _measure(case, asked["limit_bytes"])
    except TooLarge as error:
        result = {"status": "out_of_memory", "message": str(error)}
    except (ValueError, NotImplementedError) as error:
        result = {"status": "unsupported", "message": f"{type(error).__name__}: {error}"[:300]}
    except Exception as error:
        result = {"status": failure_status(str(error)), "message": f"{type(error).__name__}: {error}"[:300]}
    print(_MARK + json.dumps(result))


def _measure(case: Case, limit_bytes: int | None) -> dict[str, Any]:
    import jax

    platform = jax.default_backend()
    prepared = prepare(case, limit_bytes)
    what = prepared.setup()
    gc.collect()
    result: dict[str, Any] = {"status": "ok", "platform": platform}
    if platform != "cpu":
        if case.implementation in IN_TORCH:
            import torch

            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            prepared.run(what, 1)
            return result | {
                "peak_bytes": torch.cuda.max_memory_allocated() - before,
                "peak_method": "torch.cuda.max_memory_allocated",
            }
        device = jax.devices()[0]
        start: Any = device.memory_stats()
        prepared.run(what, 1)
        end: Any = device.memory_stats()
        return result | {
            "peak_bytes": end["peak_bytes_in_use"] - start["bytes_in_use"],
            "peak_method": "device.memory_stats",
            "peak_is_upper_bound": end["peak_bytes_in_use"] == start["peak_bytes_in_use"],
        }
    _return_free_memory()
    if _reset_high_water_mark():
        before = _status_bytes("VmRSS")
        prepared.run(what, 1)
        return result | {"peak_bytes": max(0, _status_bytes("VmHWM") - before), "peak_method": "VmHWM"}
    before = _max_rss_bytes()
    prepared.run(what, 1)
    return result | {"peak_bytes": _max_rss_bytes() - before, "peak_method": "ru_maxrss"}


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
