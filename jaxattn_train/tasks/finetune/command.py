"""`jaxattn-train finetune`: fine-tunes a pretrained text encoder with a head."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxattn_train.cli.parsing import resume_command
from jaxattn_train.data.buckets import Buckets
from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.text_classification import LabelledTexts, load_sst2
from jaxattn_train.data.token_examples import token_examples
from jaxattn_train.data.tweeteval import load_emotion_pairs, load_tweeteval
from jaxattn_train.engine.compilation import start_process
from jaxattn_train.engine.compile_for import for_target
from jaxattn_train.engine.functional import Functional
from jaxattn_train.tasks.finetune.config import FinetuneConfig, FinetuneData, parse
from jaxattn_train.tasks.finetune.model import (
    describe_model,
    load_encoder,
    make_optimizer,
    pretrained_parameters,
    text_classifier,
)
from jaxattn_train.tasks.finetune.relevance import add_relevance
from jaxattn_train.tasks.shared.losses import balanced_weights, num_outputs
from jaxattn_train.tasks.shared.training import Recipe, train_classifier

ENCODER_FOLDER = "encoder"


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    config = for_target(parse(argv))  # the encoder is loaded in the dtype of the computation
    start_process(config.run)  # before the encoder is on any device
    return finetune(config, load_encoder(config.model), command=resume_command("finetune", argv))


def finetune(config: FinetuneConfig, encoder: Any, *, command: str = "the same command") -> int:
    """Fine-tunes an encoder with the configured head; see `train_classifier`.

    Args:
        config: of the run.
        encoder: what --encoder names.
        command: printed as the way to resume.

    Returns:
        The exit code.

    Raises:
        UserError: a flag, a file or a label is not usable.
        TrainingFailed: non-finite numbers, or no readable checkpoint.
    """
    loss = config.data.loss
    data = token_examples(
        load_texts(config.data),
        encoder,
        max_length=config.data.max_length,
        loss=loss,
        label_separator=config.data.separator,
    )
    classes, layers = len(data.classes), encoder.config.num_layers
    batches = Buckets(data.train.lengths, max_length=data.max_length, batch_size=config.optimizer.batch_size)
    config = config.resolved(len(batches))
    balanced = config.data.class_weights == "balanced"

    def make_model(config: FinetuneConfig, data: ClassificationData, example: Any) -> Functional:
        return text_classifier(config.model, encoder, num_outputs(loss, classes), example)

    def describe(config: FinetuneConfig, data: ClassificationData, model: Functional) -> Sequence[str]:
        return describe_model(config, model, layers, encoder.config.hidden_size)

    recipe = Recipe(
        make_model,
        describe,
        loss=loss,
        class_weights=balanced_weights(loss, data.train.labels, classes) if balanced else None,
        optimizer=functools.partial(make_optimizer, config.optimizer, encoder.config.num_blocks),
        start=pretrained_parameters(encoder),
        metric="val_f1",
        patience=config.evaluation.patience,
        separator=config.data.separator or ",",
        begin=functools.partial(save_encoder, encoder),
        finish=functools.partial(add_relevance, config, encoder),
    )
    return train_classifier(config, data, recipe, command=command)


def save_encoder(encoder: Any, out: Path) -> None:
    """Keeps the encoder's configuration and tokenizer beside the checkpoints, which hold its weights."""
    folder = out / ENCODER_FOLDER
    folder.mkdir(exist_ok=True)
    text = json.dumps(encoder.config.to_dict(), indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    encoder.tokenizer.save(folder)


def load_texts(data: FinetuneData) -> LabelledTexts:
    """The configured texts.

    Raises:
        UserError: a file or a column is not usable.
    """
    named: dict[str, Callable[[str | None], LabelledTexts]] = {
        "sst2": load_sst2,
        **{name: functools.partial(load_tweeteval, name) for name in ("irony", "emotion")},
        "emotion-pairs": load_emotion_pairs,
    }
    return data.load(named, data.separator, data.label_columns or ())
