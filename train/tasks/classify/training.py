"""Training of a sequence classifier on any task that comes as `ClassificationData`. Reads from top to bottom."""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxattn.models import BackboneConfig, SequenceClassifier
from train.data.batches import Batch, BatchStream
from train.data.buckets import Buckets
from train.data.classification import ClassificationData
from train.data.trees import Shapes, Trees, common_shapes
from train.engine import loop, sharding
from train.engine.evaluate import make_predict
from train.engine.functional import Functional, Params, compute_dtype, take_apart
from train.engine.metrics import clock, mean, mean_and_spread
from train.engine.run import Checked, Run
from train.tasks.classify.config import ClassificationConfig
from train.tasks.classify.report import finish, measure

MakeModel = Callable[[Any, Any, Batch], Functional]
"""(config, data, a batch (seeds, B, ...) to try the model on) -> the model as functions of its parameters."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier is trained, measured and reported; the defaults are those of training from scratch."""

    loss: loop.Loss = loop.class_loss
    optimizer: Callable[[Collection[str]], optax.GradientTransformation] | None = None
    """The names of the parameters that decay -> the update rule; None for `loop.make_optimizer`."""
    start: Params | None = None
    """Values that parameters begin with, such as pretrained ones."""
    measure: Callable[[np.ndarray, np.ndarray], dict[str, list[float]]] = measure
    """(logits (seeds, examples, outputs), labels) -> a number for each seed, by name; "loss" among them."""
    metric: str = "val_accuracy"
    """"val_" and the one of these names that decides which checkpoint is the best."""
    stratify: bool = False
    """Whether batches hold the classes in the shares they have in all data; see `train.data.buckets.Buckets`."""
    patience: int | None = None
    """Evaluations without a better one after which training stops; None for no such end."""
    describe: Callable[..., list[str]] | None = None
    """As `describe` below."""
    begin: Callable[[Path], None] | None = None
    """Writes into the run folder what reading new inputs takes."""
    finish: Callable[..., Any] = finish
    """As `train.classification_report.finish`."""


def train_classifier(
    config: ClassificationConfig,
    data: ClassificationData,
    *,
    command: str = "the same command",
    make_model: MakeModel | None = None,
    recipe: Recipe | None = None,
) -> int:
    """Trains, or goes on training, until the last step, a signal, or a number that is not finite.

    Args:
        config: everything about the run but the data.
        data: the task.
        command: what to tell the user to type to resume.
        make_model: what is trained; None for `sequence_classifier`.
        recipe: how; None for `Recipe()`.

    Returns:
        0 when finished, 130 or 143 when a signal stopped it (a checkpoint is then on disk).

    Raises:
        UserError: something in the configuration is not usable.
        TrainingFailed: not finite, or no checkpoint can be read.
    """
    # 1. The pieces: devices, batches, model. All complaints come here, before anything is written.
    recipe = recipe or Recipe()
    sharding.initialize_distributed(config.run.distributed)
    seeds, batch_size = config.seeds(), config.optimizer.batch_size
    mesh = sharding.make_mesh(config.run.fsdp, batch_size=batch_size, accumulate=config.optimizer.accumulate)
    shapes = None if data.lengths is None else common_shapes(data.lengths, data.max_length)
    buckets = {
        name: Buckets(
            part.lengths,
            max_length=data.max_length,
            batch_size=batch_size,
            kinds=None if shapes is None else shapes.kinds[name],
            strata=part.labels if recipe.stratify else None,
        )
        for name, part in data.parts().items()
    }
    trees = make_trees(data, shapes)
    rows = sharding.local_rows(mesh, batch_size)
    streams = BatchStream(data.train, trees.get("train"), buckets["train"], seeds=seeds, rows=rows)
    examples = streams.examples()
    model = (make_model or sequence_classifier)(config, data, next(iter(examples.values())))
    model = sharding.gather_before_use(model, mesh)

    # 2. The folder: start, or go on from its newest checkpoint.
    run = Run(
        config,
        model,
        mesh,
        streams,
        identity=config.identity() | {"data": data.sha256()},
        keeps={"task": data.record},
        metric=recipe.metric,
        loss=recipe.loss,
        optimizer=recipe.optimizer,
        start=recipe.start,
        patience=recipe.patience,
    )
    run.begin((recipe.describe or describe)(config, data, model, mesh, run.out))

    if recipe.begin is not None and jax.process_index() == 0:
        recipe.begin(run.out)

    # 3. Compile before the clock starts.
    began = time.monotonic()
    train_step, mode = run.compile(list(examples.values()))
    if not run.is_done:
        run.progress.say(
            f"compiled {len(examples)} shapes of batches, of {', '.join(map(str, examples))} tokens a row, in "
            f"{clock(time.monotonic() - began)}; {len(buckets['train'])} batches an epoch"
        )
    predict = make_predict(model, mesh, seeds=len(seeds), mode=mode)

    def check(params: Params) -> Checked:
        logits = predict(params, data.validation, trees.get("validation"), buckets["validation"])
        entry = {
            f"val_{name}": values for name, values in recipe.measure(logits, data.validation.labels).items()
        }
        numbers = ", ".join(
            f"{name.removeprefix('val_')} {mean_and_spread(values)}" for name, values in entry.items()
        )
        return Checked(entry, mean(entry[recipe.metric]), f"validation {numbers} nats per example")

    # 4. The loop.
    def tokens(batch: Batch) -> int:
        return int(batch["mask"].sum()) * jax.process_count()

    stopped = run.train(train_step, check, tokens=tokens, command=command)
    if stopped is not None:
        return stopped

    # 5. The report, of the best checkpoint.
    def predict_part(params: Params, name: str) -> np.ndarray:
        return predict(params, data.parts()[name], trees.get(name), buckets[name])

    recipe.finish(config, data, run, predict_part, shapes=len(examples), batches=len(buckets["train"]))
    run.store.close()
    return 0


def make_trees(data: ClassificationData, shapes: Shapes | None) -> dict[str, Trees]:
    """The trees of every part, of common shapes; empty for data without trees."""
    if data.lengths is None or shapes is None:
        return {}
    # The test part is read once, at the end.
    return {name: Trees(lengths, shapes.of, keep=name != "test") for name, lengths in data.lengths.items()}


def sequence_classifier(config: ClassificationConfig, data: ClassificationData, example: Batch) -> Functional:
    """The configured classifier as functions of its parameters.

    Args:
        config: sizes, mechanism, positions, dtype of the computation.
        data: numbers of ids, classes and tokens.
        example: a batch (seeds, B, ...) to try the model on.

    Raises:
        UserError: what the model itself rejects, such as an unknown mechanism.
    """
    m = config.model

    def build(key: PRNGKeyArray) -> nnx.Module:
        backbone = BackboneConfig(
            num_layers=m.num_layers,
            num_heads=m.num_heads,
            hidden_size=m.features,
            max_length=data.max_length,
            mechanism=m.attention,
            positions=m.positions,
            qk_norm=m.qk_norm,
            dropout=m.dropout,
            dtype=compute_dtype(m.dtype),
        )
        return SequenceClassifier(
            data.vocab_size, len(data.classes), backbone, pooling=m.pooling, rngs=nnx.Rngs(params=key)
        )

    first: dict[str, Any] = jax.tree.map(lambda x: x[0], example)
    return take_apart(
        build, first["tokens"], dropout=m.dropout > 0, token_mask=first["mask"], tree=first["tree"]
    )


def describe(
    config: ClassificationConfig, data: ClassificationData, model: Functional, mesh: Mesh, out: Path
) -> list[str]:
    """What is being trained, in a few lines."""
    m = config.model
    return describe_run(
        config,
        data,
        mesh,
        out,
        [
            f"model    {m.attention}, positions {m.positions}, pooling {m.pooling}: {m.num_layers} layers, "
            f"{m.num_heads} heads, features {m.features}, at most {data.max_length} tokens; "
            f"{model.num_params():,} parameters"
        ],
    )


def describe_run(
    config: ClassificationConfig, data: ClassificationData, mesh: Mesh, out: Path, model: Sequence[str]
) -> list[str]:
    """The lines about the model, and those about data, steps, devices and folder."""
    o, device = config.optimizer, jax.devices()[0]
    return [
        *model,
        *(
            f"{'data' if i == 0 else '':<8} {data.name + ': ' if i == 0 else ''}{n}"
            for i, n in enumerate(data.notes)
        ),
        f"training {o.steps} steps of {o.batch_size} examples, seeds {', '.join(map(str, config.seeds()))}",
        f"devices  {jax.device_count()} {device.platform} ({device.device_kind}), "
        + " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        + f", {np.dtype(compute_dtype(config.model.dtype)).name}",
        f"folder   {out}",
    ]
