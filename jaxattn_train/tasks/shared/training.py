"""Training of a sequence classifier on any task that comes as `ClassificationData`."""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxattn_train.cli.options import TaskConfig
from jaxattn_train.data.batches import Batch, BatchStream
from jaxattn_train.data.buckets import Buckets
from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.trees import Shapes, Trees, common_shapes
from jaxattn_train.engine import resume, sharding
from jaxattn_train.engine.compilation import start_process
from jaxattn_train.engine.compile_for import choose_devices, report_step
from jaxattn_train.engine.description import describe_run
from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.engine.metrics import clock, mean
from jaxattn_train.engine.run import Checked, Run
from jaxattn_train.tasks.shared.losses import make_loss
from jaxattn_train.tasks.shared.model import describe_classifier, sequence_classifier
from jaxattn_train.tasks.shared.options import LossKind
from jaxattn_train.tasks.shared.prediction import make_predict
from jaxattn_train.tasks.shared.report import Measured, closing, finish
from jaxattn_train.tasks.shared.scores import listed, scores


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier is trained and reported; the defaults train from scratch."""

    make_model: Callable[[Any, Any, Batch], Functional] = sequence_classifier
    """(config, data, a batch (seeds, B, ...) to trace the model with) -> the model as functions."""
    describe: Callable[[Any, Any, Functional], Sequence[str]] = describe_classifier
    """(config, data, model) -> lines about the model."""
    loss: LossKind = "softmax"
    class_weights: np.ndarray | None = None
    """See `losses.balanced_weights`."""
    optimizer: Callable[[Collection[str]], optax.GradientTransformation] | None = None
    """Names of the parameters that decay -> the update rule; None for `loop.make_optimizer`."""
    start: Params | None = None
    """Initial values of parameters, such as pretrained ones."""
    metric: str = "val_accuracy"
    """The score that decides which checkpoint is the best, with "val_" before its name."""
    stratify: bool = False
    """Whether batches hold the classes in their shares of all data; see `jaxattn_train.data.buckets.Buckets`."""
    patience: int | None = None
    """Evaluations without a better score after which training stops; None never does."""
    separator: str = ","
    """Between several labels of an example."""
    begin: Callable[[Path], None] | None = None
    """Writes into the run folder what reading new inputs takes."""
    finish: Callable[[Run, Measured], None] | None = None
    """Adds to the report."""


def train_classifier(
    config: TaskConfig, data: ClassificationData, recipe: Recipe, *, command: str = "the same command"
) -> int:
    """Trains, or resumes, until the last step, a signal, or a non-finite number.

    Args:
        config: of the run.
        data: the task.
        recipe: how.
        command: printed as the way to resume.

    Returns:
        0 when finished, 130 or 143 when a signal stopped it (after writing a checkpoint).

    Raises:
        UserError: something in the configuration is not usable.
        TrainingFailed: non-finite numbers, or no readable checkpoint.
    """
    # 1. Devices, batches, model. Every error of the user's shows here, before anything is written.
    start_process(config.run)
    config, target, mesh = choose_devices(config)
    digests = data.digests()
    identity = config.identity() | {name: value for name, value in digests.items() if name != "test data"}
    if target is None and resume.is_done(config, identity | digests, closing):
        return 0
    seeds, batch_size = config.seeds(), config.optimizer.batch_size
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
    model = recipe.make_model(config, data, next(iter(examples.values())))
    model = sharding.partitioned(model)
    loss = make_loss(recipe.loss, recipe.class_weights)
    if target is not None:
        batches = list(examples.values())
        return report_step(config, target, model, mesh, loss, batches, recipe.optimizer)

    # 2. The folder: a new run, or resume from its newest checkpoint.
    run = Run(
        config,
        model,
        mesh,
        streams,
        loss,
        identity=identity,
        keeps={"task": data.record},
        metric=recipe.metric,
        optimizer=recipe.optimizer,
        start=recipe.start,
        patience=recipe.patience,
    )
    about = [
        f"{'data' if i == 0 else '':<8} {data.name + ': ' if i == 0 else ''}{note}"
        for i, note in enumerate(data.notes)
    ]
    lines = [*recipe.describe(config, data, model), *about]
    run.begin(describe_run(config, mesh, run.out, lines, "examples"))
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

    def predict_part(params: Params, name: str) -> np.ndarray:
        return predict(params, data.parts()[name], trees.get(name), buckets[name])

    def check(params: Params) -> Checked:
        found = scores(recipe.loss, predict_part(params, "validation"), data.validation.labels)
        entry = {f"val_{name}": values for name, values in found.items()}
        return Checked(entry, mean(entry[recipe.metric]), f"validation {listed(found)}")

    # 4. The loop.
    def tokens(batch: Batch) -> int:
        return int(batch["mask"].sum()) * jax.process_count()

    stopped = run.train(train_step, check, tokens=tokens, command=command)
    if stopped is not None:
        return stopped

    # 5. The report, of the best checkpoint.
    finish(
        data,
        run,
        predict_part,
        identity=identity | digests,
        loss=recipe.loss,
        separator=recipe.separator,
        more=recipe.finish,
        shapes=len(examples),
        batches=len(buckets["train"]),
    )
    run.close()
    return 0


def make_trees(data: ClassificationData, shapes: Shapes | None) -> dict[str, Trees]:
    """The trees of every part, padded to common shapes; empty for data without trees."""
    if data.lengths is None or shapes is None:
        return {}
    # The test part is read once, at the end: its trees are not kept.
    return {name: Trees(lengths, shapes.of, keep=name != "test") for name, lengths in data.lengths.items()}
