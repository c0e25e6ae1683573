"""Run times of a classifier with other attention, in turns with softmax."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.nn import Mechanism, Softmax
from train.studies.zero_shot.layers import LayeredClassifier
from train.studies.zero_shot.measure import Batch, Prepared, Variant

SOFTMAX = "softmax"


def time_variants(
    classifier: LayeredClassifier,
    batch: Batch,
    tried: Sequence[Variant],
    prepared: Mapping[tuple[str, int], Prepared],
    repeats: int,
) -> dict[str, list[float]]:
    """Seconds of the whole forward pass on a batch: of "softmax" and of every "VARIANT SET", in each round.

    Trees without self are left out: they do what trees with self do.
    """
    layers = {SOFTMAX: classifier.layers}
    for variant in tried:
        if not getattr(variant.mechanism, "include_self", True):
            continue
        for name, chosen in prepared[variant.name, variant.seeds[0]].sets.items():
            layers[f"{variant.name} {name}"] = chosen
    print(f"timing {len(layers)} cases on {batch.tokens.shape[1]} tokens", flush=True)
    return seconds_in_turns(lambda chosen: classifier.run(chosen, batch.tokens, batch.mask), layers, repeats)


def time_long(
    classifier: LayeredClassifier,
    tried: Sequence[Variant],
    prepared: Mapping[tuple[str, int], Prepared],
    length: int,
    head_sizes: Sequence[int],
    repeats: int,
) -> list[dict[str, Any]]:
    """The time of one text of random tokens with every variant in all layers, over that with softmax.

    Trees without self are left out: they do what trees with self do.
    """
    every = tuple(range(len(classifier.layers)))
    ids = np.random.default_rng(0).integers(0, classifier.encoder.config.vocab_size, (1, length))
    tokens, mask = jnp.asarray(ids, jnp.int32), jnp.ones((1, length), bool)
    mechanisms: dict[str, Mechanism] = {SOFTMAX: Softmax()}
    layers = {SOFTMAX: classifier.layers}
    for variant in tried:
        full = next((name for name, numbers in variant.layers.items() if numbers == every), None)
        if full is not None and getattr(variant.mechanism, "include_self", True):
            mechanisms[variant.name] = variant.mechanism
            layers[variant.name] = prepared[variant.name, variant.seeds[0]].sets[full]
    print(f"timing {len(layers)} cases on {length} tokens", flush=True)
    samples = seconds_in_turns(lambda chosen: classifier.run(chosen, tokens, mask), layers, repeats)
    flops = {name: len(every) * m.flops(length, *head_sizes).forward for name, m in mechanisms.items()}
    return [
        {
            "variant": name,
            "length": length,
            "attention_flops": flops[name],
            "relative_flops": flops[name] / flops[SOFTMAX],
            "seconds": float(np.median(samples[name])),
            "relative_seconds": relative(samples, name, SOFTMAX),
        }
        for name in layers
    ]


def seconds_in_turns(
    run: Callable[[Any], Any], cases: Mapping[str, Any], repeats: int
) -> dict[str, list[float]]:
    """Seconds of `run(case)` in each of `repeats` rounds; a round runs every case once, in a new order."""
    for case in cases.values():
        jax.block_until_ready(run(case))
    found: dict[str, list[float]] = {name: [] for name in cases}
    order, shuffle = list(cases), random.Random(0)
    for _ in range(repeats):
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            jax.block_until_ready(run(cases[name]))
            found[name].append(time.perf_counter() - start)
    return found


def relative(samples: Mapping[str, list[float]], name: str, to: str) -> float:
    """The median over the rounds of the ratio of two cases."""
    return float(np.median(np.divide(samples[name], samples[to])))
