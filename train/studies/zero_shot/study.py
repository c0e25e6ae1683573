"""The zero-shot study itself: every variant measured, timed, and put into one record."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxattn.nn import Softmax
from train.data.token_examples import TextData
from train.engine.provenance import over_seeds, provenance
from train.studies.zero_shot.layers import LayeredClassifier
from train.studies.zero_shot.measure import (
    Predicted,
    Variant,
    batches_of,
    calibration_batch,
    mean_divergences,
    predict,
    prepare,
)
from train.studies.zero_shot.timing import SOFTMAX, relative, time_long, time_variants
from train.tasks.finetune.predict import Trained
from train.tasks.shared.losses import probabilities
from train.tasks.shared.scores import predictions

DIVERGENCE_TEXTS = 256
"""Enough: rows and heads are averaged too."""


def study(
    trained: Trained,
    classifier: LayeredClassifier,
    data: TextData,
    tried: Sequence[Variant],
    *,
    batch_size: int,
    repeats: int,
    long: Sequence[int],
) -> dict[str, Any]:
    """Everything measured, as a record.

    Args:
        trained: the model.
        classifier: the same by layers.
        data: texts to calibrate on and to measure.
        tried: the variants.
        batch_size: texts at a time, and to calibrate on.
        repeats: rounds of the timing.
        long: lengths of texts of random tokens to be timed too.
    """
    part_name = "validation" if data.test is None else "test"
    part = data.parts()[part_name]
    batches = batches_of(part, batch_size)
    lengths = sorted({batch.tokens.shape[1] for batch in batches})
    calibration = calibration_batch(data.train, lengths[-1], len(batches[-1].mask))
    print(
        f"{len(part):,} texts padded to {' or '.join(map(str, lengths))} tokens; {len(tried)} variants",
        flush=True,
    )
    states = classifier.states(calibration.tokens, calibration.mask)
    prepared = {}
    for variant in tried:
        for seed in variant.seeds:
            prepared[variant.name, seed] = prepare(classifier, variant, seed, calibration, states)
        print(f"ready: {variant.name}", flush=True)
    found = predict(classifier, batches, tried, prepared, say=lambda line: print(line, flush=True))
    some = batches_of(part, batch_size, DIVERGENCE_TEXTS)
    print(f"divergences on {sum(len(batch.rows) for batch in some)} texts", flush=True)
    divergences = mean_divergences(classifier, some, tried, prepared)

    first = batches[0]
    samples = time_variants(classifier, first, tried, prepared, repeats)
    heads = trained.encoder.config.num_heads
    sizes = (first.tokens.shape[1], heads, trained.encoder.config.hidden_size // heads)
    times = {
        name: {
            "seconds_per_1000": 1000 * float(np.median(seconds)) / len(first.mask),
            "relative_seconds": relative(samples, name, SOFTMAX),
        }
        for name, seconds in samples.items()
    }
    said = predictions(trained.loss, probabilities(trained.loss, found.softmax))
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
        "seeds": sorted({seed for variant in tried for seed in variant.seeds}),
        "timed_texts": len(first.mask),
        "calibration_texts": len(calibration.rows),
        "divergence_texts": sum(len(batch.rows) for batch in some),
        "repeats": repeats,
        **provenance(Mesh(np.array(jax.devices()[:1]), ("data",))),
        "softmax": {
            "accuracy": accuracy(said, part.labels),
            "attention_flops": len(classifier.layers) * Softmax().flops(*sizes).forward,
            "dense_flops": dense_flops(classifier, sizes[0]),
            "seconds_per_1000": times[SOFTMAX]["seconds_per_1000"],
        },
        "rows": [
            row | times.get(f"{row['variant']} {row['layers']}", {})
            for row in rows_of(
                tried, found, divergences, trained.loss, part.labels, sizes, len(classifier.layers)
            )
        ],
        "long": [
            row
            for length in long
            for row in time_long(classifier, tried, prepared, length, sizes[1:], repeats)
        ],
    }


def rows_of(
    tried: Sequence[Variant],
    found: Predicted,
    divergences: Mapping[str, np.ndarray | None],
    kind: str,
    labels: np.ndarray,
    sizes: tuple[int, int, int],
    count: int,
) -> list[dict[str, Any]]:
    """One row for every variant and set of layers.

    Args:
        tried: the variants.
        found: their logits.
        divergences: of each, (seeds, layers).
        kind: of the loss.
        labels: of the texts.
        sizes: (T, N, H) that operations are counted for.
        count: of layers.
    """
    base = predictions(kind, probabilities(kind, found.softmax))
    said = {
        key: [predictions(kind, probabilities(kind, x)) for x in logits]
        for key, logits in found.variants.items()
    }
    exact = Softmax().flops(*sizes).forward
    rows = []
    for variant in tried:
        one = variant.mechanism.flops(*sizes).forward
        far = divergences[variant.name]
        for name, numbers in variant.layers.items():
            flops = one * len(numbers) + exact * (count - len(numbers))
            rows.append(
                {
                    "variant": variant.name,
                    "layers": name,
                    "numbers": list(numbers),
                    "accuracy": over_seeds([accuracy(x, labels) for x in said[variant.name, name]]),
                    "agreement": over_seeds([accuracy(x, base) for x in said[variant.name, name]]),
                    "divergence": None
                    if far is None
                    else over_seeds(far[:, list(numbers)].mean(axis=1).tolist()),
                    "divergence_by_layer": None if far is None else far.mean(axis=0).tolist(),
                    "attention_flops": flops,
                    "relative_flops": flops / (count * exact),
                }
            )
            with_self = said.get((variant.name.removesuffix(":noself"), name))
            if variant.name.endswith(":noself") and with_self is not None:
                # The same texts: how many are right with one of the two only.
                here, there = (right(x[0], labels) for x in (said[variant.name, name], with_self))
                rows[-1]["right_without_self_only"] = int((here & ~there).sum())
                rows[-1]["right_with_self_only"] = int((there & ~here).sum())
    return rows


def right(said: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For which texts all of the prediction is right."""
    return (said == labels).reshape(len(labels), -1).all(axis=1)


def accuracy(said: np.ndarray, labels: np.ndarray) -> float:
    """For what share of the texts that is so."""
    return float(right(said, labels).mean())


def dense_flops(classifier: LayeredClassifier, length: int) -> int:
    """Operations of all layers' projections and MLPs on one text: 2 for every weight and token."""
    named = [pair for _, state in classifier.layers for pair in nnx.to_flat_state(state)]
    return 2 * length * sum(variable.size for path, variable in named if path[-1] == "kernel")
