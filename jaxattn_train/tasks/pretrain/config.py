"""Command-line options of pretrain."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from jaxattn_train.cli.options import EvaluationOptions, OptimizerOptions, Options, TaskConfig
from jaxattn_train.cli.parsing import parse_with_presets
from jaxattn_train.errors import UserError


@dataclasses.dataclass(frozen=True)
class PretrainModel(Options):
    """The encoder and its head."""

    encoder: str = "distilbert/distilbert-base-uncased"
    """A folder with config.json, model.safetensors and tokenizer.json, or a name on the Hugging Face hub; its files
    must hold the head of masked language modelling."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation (parameters stay float32); auto is bfloat16 on accelerators, float32 on CPU."""


@dataclasses.dataclass(frozen=True)
class PretrainData(Options, at_least={"max_length": 8}):
    """The texts."""

    train_file: str | None = None
    """.txt with a text a line, or .tsv, .csv or .jsonl with a column of texts."""
    validation_file: str | None = None
    """The same for validation; by default one window in twenty of the training file."""
    text_column: str | None = None
    """Name of the column of texts in tables; by default text."""
    max_length: int = 128
    """Tokens of a window; texts follow each other in windows without padding, with a separator between them."""
    mask_rate: float = 0.15
    """Share of the tokens that are predicted: 80 % of them are masked, 10 % replaced, 10 % left as they are."""
    whole_words: bool = False
    """Predict all tokens of a word together."""

    def _check(self) -> None:
        if self.train_file is None:
            raise UserError("--train-file must be given: .txt with a text a line, or a table; got none.")
        if not 0 < self.mask_rate < 1:
            raise UserError(f"--mask-rate must be above 0 and below 1; got {self.mask_rate:g}.")


@dataclasses.dataclass(frozen=True)
class PretrainConfig(TaskConfig):
    """Continues masked language modelling of a pretrained encoder on your own text, and writes the encoder.

    The folder `model` in the run folder is then what --encoder of finetune takes, and what transformers reads. The
    same command again resumes the run.
    """

    command: ClassVar[str] = "pretrain"
    brief = (
        "encoder",
        "train_file",
        "validation_file",
        "text_column",
        "whole_words",
        "steps",
        "lr",
        "seeds",
        "out",
    )
    preset: Literal["text"] = "text"
    """Which set of defaults to start from."""
    model: PretrainModel = PretrainModel()
    data: PretrainData = PretrainData()

    def identity(self) -> dict[str, Any]:
        """Everything but the texts that changes the trained numbers."""
        names = ("max_length", "mask_rate", "whole_words")
        return super().identity() | {name: getattr(self.data, name) for name in names}


PRESETS = {
    "text": PretrainConfig(
        optimizer=OptimizerOptions(lr=5e-5, beta2=0.98, weight_decay=0.01),
        evaluation=EvaluationOptions(eval_every=200),
    )
}


def parse(argv: Sequence[str]) -> PretrainConfig:
    """The configuration of a command line.

    Examples:
        >>> parse(["--train-file", "letters.txt", "--whole-words"]).out()
        'runs/pretrain-letters'
    """
    return parse_with_presets(argv, PRESETS, command="pretrain")
