"""Run times of several cases, in turns."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.suites.prepared import Prepared


def time_in_turns(
    prepared: Mapping[str, Prepared],
    *,
    repeats: int,
    min_sample_s: float = 0.02,
    max_seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of one run, `repeats` of them a case, taken in rounds through all cases.

    Each round runs every case once, in a new order, so that a slow phase of the machine hits all of them; a ratio
    of two cases is then best taken round by round. A short case is repeated inside a sample until it lasts; a long
    one takes part in the first rounds only.

    Args:
        prepared: the cases by name.
        repeats: rounds.
        min_sample_s: least duration of one sample, in seconds.
        max_seconds: what the rounds of one case may take together, in seconds; every case takes part in one at
            least. None: all take part in all.
        clock: gives seconds.

    Returns:
        The samples by name, and the error of every case that failed, by name.
    """
    samples: dict[str, list[float]] = {}
    errors: dict[str, str] = {}
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
            errors[name] = f"{type(error).__name__}: {error}"
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
                errors[name] = f"{type(error).__name__}: {error}"
    return {name: s for name, s in samples.items() if name not in errors}, errors


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, in seconds."""
    q1, median, q3 = np.percentile(samples, [25, 50, 75])
    return {"median_s": float(median), "q1_s": float(q1), "q3_s": float(q3)}


def paired_ratio(samples: Sequence[float], peer: Sequence[float]) -> float:
    """Median of the ratio to the peer in the same round, over the rounds (the first ones) that both took part in."""
    common = min(len(samples), len(peer))
    return float(np.median(np.asarray(samples[:common]) / np.asarray(peer[:common])))
