"""What a trained classifier does when other attention takes the place of softmax, without any training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxattn.nn import Mechanism
from train.data.sequences import Sequences
from train.studies.zero_shot.divergence import has_distribution, layer_divergence
from train.studies.zero_shot.layers import Layer, LayeredClassifier, query_key

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


class Predicted(NamedTuple):
    """Logits of the measured texts: (texts, outputs), and (seeds, texts, outputs) by (variant, set of layers)."""

    softmax: np.ndarray
    variants: dict[tuple[str, str], np.ndarray]


def two_lengths(lengths: np.ndarray) -> tuple[int, int]:
    """The two lengths, multiples of 8, that texts are padded to with the fewest tokens in all.

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
    step = 1 if texts is None else -(-len(lengths) // texts)
    chosen = np.arange(len(lengths)) % step == 0
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


def predict(
    classifier: LayeredClassifier,
    batches: Sequence[Batch],
    variants: Sequence[Variant],
    prepared: Mapping[tuple[str, int], Prepared],
    *,
    say: Callable[[str], None] = print,
) -> Predicted:
    """Logits of all variants, batch by batch, so that what lies below the replaced layers is run once.

    Args:
        classifier: with softmax.
        batches: all texts.
        variants: what to try.
        prepared: by (name of the variant, seed).
        say: reports progress.
    """
    texts = sum(len(batch.rows) for batch in batches)
    found: dict[tuple[str, str, int], np.ndarray] = {}

    def keep(key: tuple[str, str, int], batch: Batch, logits: jax.Array) -> None:
        every = found.setdefault(key, np.zeros((texts, logits.shape[1]), np.float32))
        every[batch.rows] = np.asarray(logits)[: len(batch.rows)]

    done = 0
    for batch in batches:
        states = classifier.states(batch.tokens, batch.mask)
        keep(("softmax", "", 0), batch, classifier.end(states[-1], batch.mask))
        for variant in variants:
            for seed in variant.seeds:
                for name, numbers in variant.layers.items():
                    layers, first = prepared[variant.name, seed].sets[name], min(numbers)
                    logits = classifier.run_from(first, layers, states[first], batch.mask)
                    keep((variant.name, name, seed), batch, logits)
        done += len(batch.rows)
        say(f"{done:,} of {texts:,} texts")
    return Predicted(
        found["softmax", "", 0],
        {
            (v.name, name): np.stack([found[v.name, name, seed] for seed in v.seeds])
            for v in variants
            for name in v.layers
        },
    )


def mean_divergences(
    classifier: LayeredClassifier,
    batches: Sequence[Batch],
    variants: Sequence[Variant],
    prepared: Mapping[tuple[str, int], Prepared],
) -> dict[str, np.ndarray | None]:
    """KL(attention ‖ softmax) of a row, (seeds, layers) by variant, at the softmax model's own queries and keys.

    Args:
        classifier: with softmax.
        batches: texts; rows of real tokens and heads are averaged.
        variants: what to measure.
        prepared: by (name of the variant, seed).

    Returns:
        None for a variant whose weights may be negative.
    """
    totals: dict[str, Any] = {v.name: np.zeros((len(v.seeds), len(classifier.layers))) for v in variants}
    rows = 0
    for batch in batches:
        states = classifier.states(batch.tokens, batch.mask)
        # Rows that only fill the batch up count for nothing.
        counted = batch.mask & (np.arange(len(batch.mask)) < len(batch.rows))[:, None]
        for number, layer in enumerate(classifier.layers):
            query, key = query_key(*layer, states[number], batch.mask)
            rows += int(counted.sum()) * query.shape[2]
            for variant in variants:
                for place, seed in enumerate(variant.seeds):
                    mechanisms = prepared[variant.name, seed].mechanisms
                    if mechanisms is None:
                        totals[variant.name] = None
                    else:
                        total = layer_divergence(*mechanisms[number], query, key, counted)
                        totals[variant.name][place, number] += float(total)
    one_layer = rows / len(classifier.layers)
    return {name: None if total is None else total / one_layer for name, total in totals.items()}
