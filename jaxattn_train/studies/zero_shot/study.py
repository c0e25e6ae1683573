"""The zero-shot study itself: every variant measured and timed, in one record."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxattn.nn import Mechanism, Softmax
from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.engine.provenance import over_seeds, provenance
from jaxattn_train.studies.zero_shot.layers import LayeredClassifier
from jaxattn_train.studies.zero_shot.measure import (
    SOFTMAX,
    Draw,
    Variant,
    batches_of,
    calibration_batch,
    draws_of,
    mean_divergences,
    predict,
    seconds_interleaved,
)
from jaxattn_train.tasks.shared.losses import probabilities
from jaxattn_train.tasks.shared.options import LossKind
from jaxattn_train.tasks.shared.scores import predictions

DIVERGENCE_TEXTS = 256
"""Enough, since rows and heads are averaged too."""


def study(
    classifier: LayeredClassifier,
    data: ClassificationData,
    variants: Sequence[Variant],
    *,
    loss: LossKind,
    batch_size: int,
    repeats: int,
    long: Sequence[int],
) -> dict[str, Any]:
    """Everything measured, as a record.

    Args:
        classifier: the model.
        data: texts to calibrate on and to measure.
        variants: what to try.
        loss: what it was trained with, which says what a logit means.
        batch_size: texts at a time, and to calibrate on.
        repeats: rounds of the timing.
        long: lengths of texts of random tokens to be timed too.
    """
    part_name = "validation" if data.test is None else "test"
    part = data.parts()[part_name]
    batches = batches_of(part, batch_size)
    lengths = sorted({batch.tokens.shape[1] for batch in batches})
    padded = " or ".join(map(str, lengths))
    print(f"{len(part):,} texts padded to {padded} tokens; {len(variants)} variants", flush=True)
    calibration = calibration_batch(data.train, lengths[-1], len(batches[-1].mask))
    draws = draws_of(classifier, variants, calibration)
    predicted = {
        key: [predictions(loss, probabilities(loss, logits)) for logits in seeds]
        for key, seeds in predict(classifier, batches, draws).items()
    }
    labels = part.labels[np.concatenate([batch.rows for batch in batches])]
    some = batches_of(part, batch_size, DIVERGENCE_TEXTS)
    divergences = mean_divergences(classifier, some, draws)
    first = batches[0]
    cases = {SOFTMAX: classifier.layers}
    cases |= {f"{d.variant.name} {name}": layers for d in timed(draws) for name, layers in d.sets.items()}
    times = seconds_interleaved(classifier, cases, first.tokens, first.mask, repeats)
    for case in times.values():
        case["seconds_per_1000"] = 1000 * case.pop("seconds") / len(first.mask)
    length = first.tokens.shape[1]
    rows = [
        row_of(classifier, variant, name, predicted, labels, divergences.get(variant.name), length)
        | times.get(f"{variant.name} {name}", {})
        for variant in variants
        for name in variant.layers
    ]
    return {
        "date": datetime.date.today().isoformat(),
        "model": {"layers": len(classifier.layers)},
        "data": {
            "name": data.name,
            "part": part_name,
            "examples": len(part),
            "tokens": float(part.lengths.mean()),
        },
        "lengths": lengths,
        "seeds": sorted({draw.seed for draw in draws}),
        "timed_texts": len(first.mask),
        "calibration_texts": len(calibration.rows),
        "divergence_texts": sum(len(batch.rows) for batch in some),
        "repeats": repeats,
        **provenance(Mesh(np.array(jax.devices()[:1]), ("data",))),
        "softmax": {
            "accuracy": accuracy(predicted[SOFTMAX, ""][0], labels),
            "attention_flops": len(classifier.layers) * layer_flops(classifier, Softmax(), length),
            "dense_flops": dense_flops(classifier, length),
            "seconds_per_1000": times[SOFTMAX]["seconds_per_1000"],
        },
        "rows": rows,
        "long": [row for length in long for row in long_rows(classifier, draws, length, repeats)],
    }


def row_of(
    classifier: LayeredClassifier,
    variant: Variant,
    name: str,
    predicted: Mapping[tuple[str, str], Sequence[np.ndarray]],
    labels: np.ndarray,
    divergences: np.ndarray | None,
    length: int,
) -> dict[str, Any]:
    """The row of a variant in one set of layers.

    Args:
        classifier: with softmax.
        variant: which.
        name: of the set.
        predicted: classes of the texts, of each seed, by (variant, set of layers).
        labels: of the texts.
        divergences: (seeds, layers), or None.
        length: tokens of a text, for the operations.
    """
    numbers = list(variant.layers[name])
    seeds, base = predicted[variant.name, name], predicted[SOFTMAX, ""][0]
    exact = layer_flops(classifier, Softmax(), length)
    softmax = len(classifier.layers) * exact
    flops = softmax + len(numbers) * (layer_flops(classifier, variant.mechanism, length) - exact)
    row = {
        "variant": variant.name,
        "layers": name,
        "numbers": numbers,
        "accuracy": over_seeds([accuracy(one, labels) for one in seeds]),
        "agreement": over_seeds([accuracy(one, base) for one in seeds]),
        "divergence": None
        if divergences is None
        else over_seeds(divergences[:, numbers].mean(axis=1).tolist()),
        "divergence_by_layer": None if divergences is None else divergences.mean(axis=0).tolist(),
        "attention_flops": flops,
        "relative_flops": flops / softmax,
    }
    with_self = predicted.get((variant.name.removesuffix(":noself"), name))
    if variant.name.endswith(":noself") and with_self is not None:
        # A paired comparison: how many texts only one of the two gets right.
        here, there = right(seeds[0], labels), right(with_self[0], labels)
        row["right_without_self_only"] = int((here & ~there).sum())
        row["right_with_self_only"] = int((there & ~here).sum())
    return row


def long_rows(
    classifier: LayeredClassifier, draws: Sequence[Draw], length: int, repeats: int
) -> list[dict[str, Any]]:
    """Time and operations of one text of random tokens, with each variant in all layers."""
    count, vocab_size = len(classifier.layers), classifier.encoder.config.vocab_size
    ids = np.random.default_rng(0).integers(0, vocab_size, (1, length))
    cases = {SOFTMAX: classifier.layers}
    mechanisms: dict[str, Mechanism] = {SOFTMAX: Softmax()}
    for draw in timed(draws):
        for name, numbers in draw.variant.layers.items():
            if numbers == tuple(range(count)):
                cases[draw.variant.name] = draw.sets[name]
                mechanisms[draw.variant.name] = draw.variant.mechanism
    tokens, mask = jnp.asarray(ids, jnp.int32), jnp.ones((1, length), bool)
    times = seconds_interleaved(classifier, cases, tokens, mask, repeats)
    flops = {name: count * layer_flops(classifier, m, length) for name, m in mechanisms.items()}
    return [
        {
            "variant": name,
            "length": length,
            "attention_flops": flops[name],
            "relative_flops": flops[name] / flops[SOFTMAX],
            **times[name],
        }
        for name in cases
    ]


def timed(draws: Sequence[Draw]) -> list[Draw]:
    """One draw of each variant, without trees that exclude self, which do the same work as those that include it."""
    return [
        draw
        for draw in draws
        if draw.seed == draw.variant.seeds[0] and getattr(draw.variant.mechanism, "include_self", True)
    ]


def right(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the whole prediction of each text is right."""
    return (predicted == labels).reshape(len(labels), -1).all(axis=1)


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The share of texts whose whole prediction is right."""
    return float(right(predicted, labels).mean())


def layer_flops(classifier: LayeredClassifier, mechanism: Mechanism, length: int) -> int:
    """Operations of one layer's attention on one text, forward."""
    config = classifier.encoder.config
    return mechanism.flops(length, config.num_heads, config.hidden_size // config.num_heads).forward


def dense_flops(classifier: LayeredClassifier, length: int) -> int:
    """Operations of all layers' projections and MLPs on one text: 2 for every weight and token."""
    named = [pair for _, state in classifier.layers for pair in nnx.to_flat_state(state)]
    return 2 * length * sum(variable.size for path, variable in named if path[-1] == "kernel")
