"""Predictions, divergences and times of a classifier with other attention, without any training."""

import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxattn.nn import Mechanism
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.studies.zero_shot.divergence import has_distribution, layer_divergence
from jaxattn_train.studies.zero_shot.layers import Layer, LayeredClassifier, query_key

MULTIPLE = 8
SOFTMAX = "softmax"


class Variant(NamedTuple):
    """An attention to be tried, in several sets of layers."""

    name: str
    mechanism: Mechanism
    seeds: tuple[int, ...]
    """Of its random numbers; one where it has none."""
    layers: dict[str, tuple[int, ...]]
    """Numbers of layers, by name of the set."""


class Draw(NamedTuple):
    """A variant with one draw of its random numbers, fitted to texts."""

    variant: Variant
    seed: int
    sets: dict[str, list[Layer]]
    """The model's layers by name of the set."""
    mechanisms: list[Layer] | None
    """In every layer, each with the statistics of the softmax model; None where the weights may be negative."""


class Batch(NamedTuple):
    """Texts padded to one length; `tokens` and `mask` may have more rows, which repeat the first ones."""

    rows: np.ndarray
    tokens: jax.Array
    mask: jax.Array


def two_lengths(lengths: np.ndarray) -> tuple[int, int]:
    """The two padded lengths, multiples of 8, with the fewest tokens in all.

    Examples:
        >>> two_lengths(np.array([5, 9, 10, 12, 40]))
        (16, 40)
    """
    longest = -(-int(lengths.max()) // MULTIPLE) * MULTIPLE
    counts = {size: int((lengths <= size).sum()) for size in range(MULTIPLE, longest + 1, MULTIPLE)}
    short = min(counts, key=lambda size: size * counts[size] + longest * (len(lengths) - counts[size]))
    return short, longest


def make_batch(part: Sequences, rows: np.ndarray, length: int, size: int) -> Batch:
    """The texts `rows` of a part in `size` rows of `length` tokens."""
    padded = part.padded(np.resize(rows, size), length)
    mask = np.arange(length) < padded.lengths[:, None]
    return Batch(rows, jnp.asarray(padded.tokens), jnp.asarray(mask))


def batches_of(part: Sequences, batch_size: int, texts: int | None = None) -> list[Batch]:
    """All texts, or about so many evenly spaced ones, padded to one of two lengths, the shorter ones first."""
    lengths = part.lengths
    short, longest = two_lengths(lengths)
    chosen = np.arange(len(lengths)) % (1 if texts is None else -(-len(lengths) // texts)) == 0
    found = []
    for length, members in (
        (short, np.flatnonzero(chosen & (lengths <= short))),
        (longest, np.flatnonzero(chosen & (lengths > short))),
    ):
        # Batches of about equal size, so that few rows are there only to fill the last one up.
        count = -(-len(members) // batch_size)
        size = -(-len(members) // max(count, 1))
        for start in range(0, len(members), max(size, 1)):
            found.append(make_batch(part, members[start : start + size], length, size))
    return found


def calibration_batch(part: Sequences, length: int, size: int) -> Batch:
    """Training texts, evenly spaced over those with at most `length` tokens."""
    fitting = np.flatnonzero(part.lengths <= length)
    chosen = np.unique(np.linspace(0, len(fitting) - 1, size).astype(int))
    return make_batch(part, fitting[chosen], length, size)


def draws_of(classifier: LayeredClassifier, variants: Sequence[Variant], texts: Batch) -> list[Draw]:
    """Every variant with each of its seeds, fitted to the texts."""
    states = classifier.states(texts.tokens, texts.mask)
    draws = []
    for variant in variants:
        for seed in variant.seeds:
            replaced = classifier.replaced(variant.mechanism, seed)
            sets = {
                name: classifier.fitted(replaced, numbers, states, texts.mask)
                for name, numbers in variant.layers.items()
            }
            mechanisms = None
            if has_distribution(nnx.merge(*replaced[0]).attention.mechanism):
                everywhere = range(len(replaced))
                layers = classifier.fitted(replaced, everywhere, states, texts.mask, independent=True)
                mechanisms = [nnx.split(nnx.merge(*layer).attention.mechanism) for layer in layers]
            draws.append(Draw(variant, seed, sets, mechanisms))
        print(f"ready: {variant.name}", flush=True)
    return draws


def predict(
    classifier: LayeredClassifier, batches: Sequence[Batch], draws: Sequence[Draw]
) -> dict[tuple[str, str], list[np.ndarray]]:
    """Logits (texts, outputs), texts in the order of the batches, a list over seeds by (variant, set of layers).

    Those of softmax are at ("softmax", ""). Batch by batch, what lies below the replaced layers is run once.
    """
    found: dict[tuple[str, str, int], list[np.ndarray]] = defaultdict(list)
    done, texts = 0, sum(len(batch.rows) for batch in batches)
    for batch in batches:
        count = len(batch.rows)
        states = classifier.states(batch.tokens, batch.mask)
        found[SOFTMAX, "", 0].append(np.asarray(classifier.end(states[-1], batch.mask))[:count])
        for draw in draws:
            for name, numbers in draw.variant.layers.items():
                first = min(numbers)
                logits = classifier.run_from(first, draw.sets[name], states[first], batch.mask)
                found[draw.variant.name, name, draw.seed].append(np.asarray(logits)[:count])
        done += count
        print(f"{done:,} of {texts:,} texts", flush=True)
    seeds: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for (variant, name, _), parts in found.items():
        seeds[variant, name].append(np.concatenate(parts))
    return seeds


def mean_divergences(
    classifier: LayeredClassifier, batches: Sequence[Batch], draws: Sequence[Draw]
) -> dict[str, np.ndarray]:
    """KL(attention ‖ softmax) of a row, (seeds, layers) by variant, at the softmax model's own queries and keys.

    Averaged over the rows of real tokens and over heads; variants whose weights may be negative are left out.
    """
    draws = [draw for draw in draws if draw.mechanisms is not None]
    totals = np.zeros((len(draws), len(classifier.layers)))
    rows = 0
    for batch in batches:
        states = classifier.states(batch.tokens, batch.mask)
        # Rows that only fill up the batch do not count.
        counted = batch.mask & (np.arange(len(batch.mask)) < len(batch.rows))[:, None]
        rows += int(counted.sum()) * classifier.encoder.config.num_heads
        for number, layer in enumerate(classifier.layers):
            query, key = query_key(*layer, states[number], batch.mask)
            for total, draw in zip(totals, draws, strict=True):
                assert draw.mechanisms is not None
                total[number] += float(layer_divergence(*draw.mechanisms[number], query, key, counted))
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for total, draw in zip(totals, draws, strict=True):
        found[draw.variant.name].append(total / rows)
    return {name: np.array(seeds) for name, seeds in found.items()}


def seconds_interleaved(
    classifier: LayeredClassifier, cases: Mapping[str, Sequence[Layer]], tokens: Any, mask: Any, repeats: int
) -> dict[str, dict[str, float]]:
    """Median seconds of the forward pass with each case's layers, and the median ratio to those of "softmax".

    A round runs every case once, in a new order; ratios are taken within a round.
    """
    print(f"timing {len(cases)} cases on {tokens.shape[1]} tokens", flush=True)
    for layers in cases.values():
        jax.block_until_ready(classifier.run(layers, tokens, mask))
    found: dict[str, list[float]] = {name: [] for name in cases}
    order, shuffle = list(cases), random.Random(0)
    for _ in range(repeats):
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            jax.block_until_ready(classifier.run(cases[name], tokens, mask))
            found[name].append(time.perf_counter() - start)
    return {
        name: {
            "seconds": float(np.median(samples)),
            "relative_seconds": float(np.median(np.divide(samples, found[SOFTMAX]))),
        }
        for name, samples in found.items()
    }
