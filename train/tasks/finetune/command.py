"""`python -m train finetune`: fine-tunes a pretrained text encoder with a head."""

import functools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.data.buckets import Buckets
from train.data.text_classification import LabelledTexts, load_files, load_sst2
from train.data.token_examples import TextData, token_examples
from train.data.tweeteval import load_tweeteval
from train.engine import sharding
from train.engine.functional import Functional
from train.tasks.classify.losses import balanced_weights, make_loss, num_outputs
from train.tasks.classify.scores import scores
from train.tasks.classify.training import Recipe, describe_run, train_classifier
from train.tasks.finetune.config import FinetuneConfig, FinetuneData, parse
from train.tasks.finetune.model import (
    describe_model,
    load_encoder,
    make_optimizer,
    pretrained_parameters,
    text_classifier,
)
from train.tasks.finetune.report import finish
from train.tasks.lra.checks import check_attention

ENCODER_FOLDER = "encoder"


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    config = parse(argv)
    for attention in (config.model.attention, config.model.head_attention):
        if attention not in (None, "none"):
            check_attention(attention)
    words = [word for word in argv if word != "--overwrite"]
    sharding.initialize_distributed(config.run.distributed)  # before the encoder is on any device
    encoder = load_encoder(config.model)
    return finetune(config, encoder, command=shlex.join(["python", "-m", "train", "finetune", *words]))


def finetune(config: FinetuneConfig, encoder: Any, *, command: str = "the same command") -> int:
    """Fine-tunes an encoder with the configured head; see `train_classifier`.

    Args:
        config: everything about the run.
        encoder: what --encoder names.
        command: what to tell the user to type to resume.

    Returns:
        The exit code.

    Raises:
        UserError: a flag, a file or a label is not usable.
        TrainingFailed: not finite, or no checkpoint can be read.
    """
    kind = config.data.loss
    data = token_examples(
        load_texts(config.data),
        encoder,
        max_length=config.data.max_length,
        loss=kind,
        label_separator=config.data.label_separator or ",",
    )
    classes, layers = len(data.classes), encoder.config.num_layers
    batches = Buckets(data.train.lengths, max_length=data.max_length, batch_size=config.optimizer.batch_size)
    config = config.resolved(len(batches))
    weights = None
    if config.data.class_weights == "balanced":
        weights = balanced_weights(kind, data.train.labels, classes)

    def make_model(config: FinetuneConfig, data: TextData, example: Any) -> Functional:
        return text_classifier(config.model, encoder, num_outputs(kind, classes), example)

    def describe(
        config: FinetuneConfig, data: TextData, model: Functional, mesh: Any, out: Path
    ) -> list[str]:
        lines = describe_model(config, model, layers, encoder.config.hidden_size)
        return describe_run(config, data, mesh, out, lines)

    recipe = Recipe(
        loss=make_loss(kind, weights),
        optimizer=functools.partial(make_optimizer, config.optimizer, layers),
        start=pretrained_parameters(encoder),
        measure=functools.partial(scores, kind),
        metric="val_f1",
        patience=config.evaluation.patience,
        describe=describe,
        begin=functools.partial(save_encoder, encoder),
        finish=functools.partial(finish, encoder),
    )
    return train_classifier(config, data, command=command, make_model=make_model, recipe=recipe)


def save_encoder(encoder: Any, out: Path) -> None:
    """Keeps the encoder's settings and tokenizer beside the checkpoints, which hold its weights."""
    folder = out / ENCODER_FOLDER
    folder.mkdir(exist_ok=True)
    text = json.dumps(encoder.config.to_dict(), indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    encoder.tokenizer.save(folder)


def load_texts(data: FinetuneData) -> LabelledTexts:
    """Reads the configured texts.

    Raises:
        UserError: a file or a column is not usable.
    """
    if data.dataset == "files":
        assert data.train_file is not None, "parse() asks for it"
        return load_files(
            data.train_file,
            data.validation_file,
            data.test_file,
            text_column=data.text_column or "text",
            label_column=data.label_column or "label",
            validation_share=data.validation_share or 0.1,
        )
    if data.dataset == "sst2":
        return load_sst2(data.data_path)
    return load_tweeteval(data.dataset, data.data_path)
