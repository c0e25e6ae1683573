"""Command-line options of charlm."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from jaxattn_train.cli.options import (
    BackboneOptions,
    EvaluationOptions,
    OptimizerOptions,
    Options,
    TaskConfig,
    check_attention,
)
from jaxattn_train.cli.parsing import parse_with_presets

Preset = Literal["demo", "study", "paper", "longctx"]


@dataclasses.dataclass(frozen=True)
class ModelConfig(BackboneOptions, at_least={"context_length": 2}):
    """The model."""

    context_length: int = 128
    """Characters the model sees at once."""
    allow_leak: bool = False
    """Allow gate=sequence in this causal model: it sees later characters (only to re-run the paper)."""

    def _check(self) -> None:
        super()._check()
        check_attention(self.attention, length=self.context_length, allow_leak=self.allow_leak)


@dataclasses.dataclass(frozen=True)
class DataConfig(Options):
    """The text."""

    corpus: Literal["reference", "tinyshakespeare"] = "reference"
    """reference ships with Python and needs no network; tinyshakespeare is downloaded once and checked."""
    text_file: str | None = None
    """Train on this UTF-8 file instead of a named corpus."""
    units: Literal["characters", "bytes"] = "characters"
    """What the model reads and predicts: the characters that occur in the text, or the bytes of its UTF-8 form."""
    data_path: str | None = None
    """Where tinyshakespeare.txt lies (file or folder), instead of JAXATTN_DATA, the cache or a download."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(
    EvaluationOptions, at_least={"eval_windows": 1, "prefix_windows": 0, "sample_tokens": 0, "temperature": 0}
):
    """What is measured, how often, and the report at the end."""

    eval_windows: int | None = 64
    """Evenly spaced validation windows per evaluation; None takes all. The report at the end takes all."""
    prefix_windows: int = 4
    """Windows on which the loss is also taken prefix by prefix, as in generation; 0 skips it."""
    prompt: str | None = None
    """Start of the text sampled at the end; by default "The ", or what the validation text starts with."""
    sample_tokens: int = 400
    """Characters to sample at the end; 0 skips it."""
    temperature: float = 0.8
    """Of that sample."""


@dataclasses.dataclass(frozen=True)
class CharLMConfig(TaskConfig):
    """Trains a character language model, keeps checkpoints, and reports.

    Start with --preset demo (real text, about three minutes on two CPU cores), study (tinyshakespeare at a size
    that CPU trains in minutes), paper (6 layers, 5,000 steps, for accelerators) or longctx (bytes, 12 layers,
    --context-length 65536, the default, to 1048576, for several accelerators with --mesh sequence=N); any flag
    overrides the preset. The same command again resumes the run.
    """

    command: ClassVar[str] = "charlm"
    brief = ("preset", "text_file", "attention", "positions", "context_length", "steps", "lr", "seeds", "out")
    preset: Preset = "demo"
    """Which set of defaults to start from."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


GATE = "softmax+gate=running"
PRESETS: dict[str, CharLMConfig] = {
    "demo": CharLMConfig(
        preset="demo",
        # Few layers and many steps: what a small budget buys most with.
        model=ModelConfig(attention=GATE, num_layers=2, num_heads=4, features=128),
        optimizer=OptimizerOptions(steps=1000, lr=3e-3, warmup=0.06),
        evaluation=EvaluationConfig(eval_every=250, log_every=25),
    ),
    "study": CharLMConfig(
        preset="study",
        model=ModelConfig(attention=GATE, num_layers=3, num_heads=2, features=64),
        data=DataConfig(corpus="tinyshakespeare"),
        optimizer=OptimizerOptions(steps=800, batch_size=8, lr=3e-3, warmup=50 / 800),
        evaluation=EvaluationConfig(eval_every=200, eval_windows=128, prefix_windows=8),
    ),
    "paper": CharLMConfig(
        preset="paper",
        model=ModelConfig(
            attention=GATE, num_layers=6, num_heads=8, features=256, context_length=256, dropout=0.1
        ),
        data=DataConfig(corpus="tinyshakespeare"),
        optimizer=OptimizerOptions(steps=5000, batch_size=64, lr=3e-4, warmup=0.06),
        evaluation=EvaluationConfig(eval_every=500, eval_windows=None, prefix_windows=16, log_every=50),
    ),
    "longctx": CharLMConfig(
        preset="longctx",
        model=ModelConfig(
            attention="features:oprf-orf:128",
            positions="rotary",
            qk_norm=0.5,
            num_layers=12,
            num_heads=12,
            features=768,
            context_length=65_536,
            remat="full",
        ),
        data=DataConfig(corpus="tinyshakespeare", units="bytes"),
        optimizer=OptimizerOptions(steps=2000, batch_size=1, lr=3e-4, warmup=0.06),
        evaluation=EvaluationConfig(eval_every=200, eval_windows=8, prefix_windows=0),
    ),
}


def parse(argv: Sequence[str]) -> CharLMConfig:
    """The configuration of a command line.

    Examples:
        >>> parse(["--preset", "paper", "--steps", "10"]).optimizer.steps
        10
    """
    return parse_with_presets(argv, PRESETS, command="charlm")
