"""What a trained classifier does when other attention takes the place of softmax, without any training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxattn.nn import Mechanism
from train.data.classification import Part
from train.zero_shot_divergence import has_distribution, layer_divergence
from train.zero_shot_layers import Layer, LayeredClassifier, query_key

MULTIPLE = 8


class Variant(NamedTuple):
    """An attention to be tried, in several sets of layers."""

    name: str
    mechanism: Mechanism
    seeds: tuple[int, ...]
    """Of its random numbers; one where it has none."""
    layers: dict[str, tuple[int, ...]]
    """Numbers of layers, by name of the set."""


class Batch(NamedTuple):
    """Texts padded to one length; `tokens` and `mask` may have more rows, which repeat the first ones."""

    rows: np.ndarray
    tokens: jax.Array
    mask: jax.Array


class Measured(NamedTuple):
    """logits (seeds, texts, outputs) by (variant, set of layers); mean divergences (seeds, layers) by variant."""

    softmax: np.ndarray
    logits: dict[tuple[str, str], np.ndarray]
    divergences: dict[str, np.ndarray | None]


def two_lengths(lengths: np.ndarray) -> tuple[int, int]:
    """The two lengths, multiples of 8, that texts are padded to with the fewest tokens in all.

    Example:
        >>> two_lengths(np.array([5, 9, 10, 12, 40]))
        (16, 40)
    """
    longest = -(-int(lengths.max()) // MULTIPLE) * MULTIPLE
    counts = {size: int((lengths <= size).sum()) for size in range(MULTIPLE, longest + 1, MULTIPLE)}
    short = min(counts, key=lambda size: size * counts[size] + longest * (len(lengths) - counts[size]))
    return short, longest


def make_batch(part: Part, rows: np.ndarray, length: int, size: int) -> Batch:
    """The texts `rows` of a part in `size` rows of `length` tokens."""
    padded = part.padded(np.resize(rows, size), length)
    mask = np.arange(length) < padded.lengths[:, None]
    return Batch(rows, jnp.asarray(padded.tokens), jnp.asarray(mask))


def batches_of(part: Part, batch_size: int) -> list[Batch]:
    """All texts, padded to one of two lengths, the shorter ones first."""
    lengths = part.lengths
    short, longest = two_lengths(lengths)
    found = []
    for length, members in (
        (short, np.flatnonzero(lengths <= short)),
        (longest, np.flatnonzero(lengths > short)),
    ):
        for start in range(0, len(members), batch_size):
            found.append(make_batch(part, members[start : start + batch_size], length, batch_size))
    return found


def calibration_batch(part: Part, length: int, size: int) -> Batch:
    """Texts of the training part, evenly spaced over those with at most `length` tokens."""
    fitting = np.flatnonzero(part.lengths <= length)
    chosen = np.unique(np.linspace(0, len(fitting) - 1, size).astype(int))
    return make_batch(part, fitting[chosen], length, size)


class Prepared(NamedTuple):
    """A variant with one draw of its random numbers."""

    sets: dict[str, list[Layer]]
    mechanisms: list[Layer] | None
    """Of every layer, each with the statistics of the softmax model; None where there is no divergence to measure."""


def prepare(
    classifier: LayeredClassifier,
    variant: Variant,
    seed: int,
    calibration: Batch,
    states: Sequence[jax.Array],
) -> Prepared:
    """The layers of a variant in all its sets, fitted to the calibration batch.

    Args:
        classifier: with softmax.
        variant: what to try.
        seed: of its random numbers.
        calibration: training texts.
        states: what `classifier.states` gives for them.
    """
    replaced = classifier.replaced(variant.mechanism, seed)
    sets = {
        name: classifier.fitted(replaced, numbers, states, calibration.mask)
        for name, numbers in variant.layers.items()
    }
    if not has_distribution(nnx.merge(*replaced[0]).attention.mechanism):
        return Prepared(sets, None)
    every = classifier.fitted(replaced, range(len(replaced)), states, calibration.mask, apart=True)
    return Prepared(sets, [nnx.split(nnx.merge(*layer).attention.mechanism) for layer in every])


def measure(
    classifier: LayeredClassifier,
    batches: Sequence[Batch],
    variants: Sequence[Variant],
    prepared: Mapping[tuple[str, int], Prepared],
    *,
    say: Callable[[str], None] = print,
) -> Measured:
    """Logits and divergences of all variants, batch by batch, so that what lies below a replaced layer is run once.

    Args:
        classifier: with softmax.
        batches: the texts.
        variants: what to try.
        prepared: by (name of the variant, seed).
        say: reports progress.
    """
    texts = sum(len(batch.rows) for batch in batches)
    count = len(classifier.layers)
    softmax: Any = None
    logits: dict[tuple[str, str], np.ndarray] = {}
    sums = {
        v.name: np.zeros((len(v.seeds), count))
        for v in variants
        if prepared[v.name, v.seeds[0]].mechanisms is not None
    }
    rows, done = 0, 0
    for batch in batches:
        states = classifier.states(batch.tokens, batch.mask)
        kept = len(batch.rows)
        found = np.asarray(classifier.end(states[-1], batch.mask))[:kept]
        if softmax is None:
            softmax = np.zeros((texts, found.shape[1]), np.float32)
            logits = {
                (v.name, name): np.zeros((len(v.seeds), *softmax.shape), np.float32)
                for v in variants
                for name in v.layers
            }
        softmax[batch.rows] = found
        # Rows that only fill the batch up count for nothing.
        counted = batch.mask & (np.arange(len(batch.mask)) < kept)[:, None]
        seen = [
            query_key(*layer, x, batch.mask) for layer, x in zip(classifier.layers, states[:-1], strict=True)
        ]
        rows += int(counted.sum()) * seen[0][0].shape[2]
        for variant in variants:
            for place, seed in enumerate(variant.seeds):
                ready = prepared[variant.name, seed]
                for name, numbers in variant.layers.items():
                    first = min(numbers)
                    out = classifier.run_from(first, ready.sets[name], states[first], batch.mask)
                    logits[variant.name, name][place, batch.rows] = np.asarray(out)[:kept]
                for number, mechanism in enumerate(ready.mechanisms or ()):
                    total = layer_divergence(*mechanism, *seen[number], counted)
                    sums[variant.name][place, number] += float(total)
        done += kept
        say(f"{done:,} of {texts:,} texts")
    divergences = {v.name: sums[v.name] / rows if v.name in sums else None for v in variants}
    return Measured(softmax, logits, divergences)
