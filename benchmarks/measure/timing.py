"""Run times of several cases, measured in interleaved rounds."""

import ctypes
import gc
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.measure.prepared import Prepared, failure


def measure_interleaved(
    makers: Mapping[str, Callable[[], Prepared]],
    *,
    peers: Sequence[str],
    repeats: int,
    max_seconds: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Compiles cases and times them side by side; a failure is recorded in its row.

    Args:
        makers: what compiles each case, by name.
        peers: names of the cases that ratios are taken to.
        repeats: rounds through all cases.
        max_seconds: see `time_interleaved`.

    Returns:
        By name: `status`, and either `message` or `compile_s`, `planned_temp_bytes`, `median_s`, `q1_s`, `q3_s`,
        `samples_s`, `repeats` and `ratios`, the medians over the rounds of this case's time over each peer's.
    """
    rows: dict[str, dict[str, Any]] = {}
    prepared: dict[str, Prepared] = {}
    for name, make in makers.items():
        try:
            ready = prepared[name] = make()
        except Exception as error:
            rows[name] = failure(error)
        else:
            rows[name] = {
                "status": "ok",
                "compile_s": ready.compile_s,
                "planned_temp_bytes": ready.temp_bytes,
            }
    samples, errors = time_interleaved(prepared, repeats=repeats, max_seconds=max_seconds)
    for name, late in errors.items():
        rows[name] |= failure(late)
    for name, own in samples.items():
        rows[name] |= summary(own) | {
            "samples_s": [float(f"{seconds:.4g}") for seconds in own],
            "repeats": len(own),
            "ratios": {peer: paired_ratio(own, samples[peer]) for peer in peers if peer in samples},
        }
    prepared.clear()
    gc.collect()
    return rows


def time_interleaved(
    prepared: Mapping[str, Prepared],
    *,
    repeats: int,
    min_sample_s: float = 0.02,
    max_seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Seconds of one run, `repeats` of them a case, taken in rounds through all cases.

    Each round runs every case once, in a new order, so that a slow phase of the machine hits all of them; a ratio
    of two cases is then best taken round by round. A short case is repeated inside a sample until it lasts
    `min_sample_s`; a long one takes part in the first rounds only.

    Args:
        prepared: the cases by name.
        repeats: rounds.
        min_sample_s: least duration of one sample, in seconds.
        max_seconds: what the rounds of one case may take together, in seconds; every case takes part in at least
            one. None: all take part in all.
        clock: gives seconds.

    Returns:
        The samples by name, and the error of every case that failed, by name.
    """
    samples: dict[str, list[float]] = {}
    errors: dict[str, Exception] = {}
    inner: dict[str, int] = {}
    rounds: dict[str, int] = {}

    def sample(name: str, times: int) -> float:
        what = prepared[name].setup()
        start = clock()
        prepared[name].run(what, times)
        return (clock() - start) / times

    for name in prepared:
        try:
            once = sample(name, 1)  # the first run also allocates
            if max_seconds is None or once < max_seconds / 2:
                once = sample(name, 1)
            inner[name] = max(1, math.ceil(min_sample_s / max(once, 1e-7)))
            rounds[name] = repeats
            if max_seconds is not None:
                rounds[name] = min(repeats, max(1, int(max_seconds / (once * inner[name]))))
            samples[name] = []
        except Exception as error:
            errors[name] = error
    order = list(samples)
    shuffle = random.Random(0)
    for round_ in range(repeats):
        shuffle.shuffle(order)
        for name in order:
            if name in errors or round_ >= rounds[name]:
                continue
            try:
                samples[name].append(sample(name, inner[name]))
            except Exception as error:
                errors[name] = error
    return {name: own for name, own in samples.items() if name not in errors}, errors


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, in seconds."""
    q1, median, q3 = np.percentile(samples, [25, 50, 75])
    return {"median_s": float(median), "q1_s": float(q1), "q3_s": float(q3)}


def paired_ratio(samples: Sequence[float], peer: Sequence[float]) -> float:
    """Median of the ratio to the peer in the same round, over the rounds (the first ones) that both took part in."""
    common = min(len(samples), len(peer))
    return float(np.median(np.asarray(samples[:common]) / np.asarray(peer[:common])))


def keep_memory() -> bool:
    """Tells glibc's malloc to keep freed memory and to serve large arrays from it; False where that is impossible.

    By default arrays of more than 32 MiB are mapped anew at each call, and the kernel zeroes their pages one by one:
    a cliff in time at some length, for every library alike, that says nothing about the kernels measured. Allocators
    that keep memory (jemalloc, tcmalloc) have no such cliff.
    """
    trim_threshold, mmap_max = -1, -4  # parameters of mallopt, from malloc.h
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
