"""Command-line options of mqar."""

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
from jaxattn_train.cli.parsing import parse_with_presets, slug
from jaxattn_train.errors import UserError


@dataclasses.dataclass(frozen=True)
class MQARModelConfig(BackboneOptions):
    """The model."""

    positions: str = "rotary"
    """none, learned, sinusoidal, rotary, morlet or morlet:learned."""
    num_heads: int = 1
    """Attention heads; must divide --features."""
    qk_norm: float | None = 0.5
    """Normalise queries and keys to this root mean square at the start (a learned gain); without it learning starts
    much later."""


@dataclasses.dataclass(frozen=True)
class MQARDataConfig(Options, at_least={"length": 8, "num_keys": 1}):
    """The rows."""

    length: int = 256
    """Tokens of a row."""
    num_keys: int = 64
    """Keys to choose from; values are as many."""
    pairs: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Numbers of pairs; a training row has any of them, and accuracy is measured for each."""
    shown_until: float = 0.7
    """At first all training rows show the answers after the questions; the share of such rows falls linearly to 0 at
    this share of --steps. 0 trains without them."""

    def _check(self) -> None:
        most = min(self.num_keys, self.length // 4)
        if not self.pairs or not all(1 <= pairs <= most for pairs in self.pairs):
            raise UserError(
                f"--pairs must be between 1 and {most}, the smaller of --num-keys and --length / 4; got "
                f"{', '.join(map(str, self.pairs)) or 'none'}."
            )
        if not 0 <= self.shown_until <= 1:
            raise UserError(f"--shown-until must be between 0 and 1; got {self.shown_until}.")


@dataclasses.dataclass(frozen=True)
class MQAREvaluationConfig(EvaluationOptions, at_least={"eval_rows": 1, "test_rows": 1}):
    """What is measured, and how often."""

    eval_rows: int = 64
    """Rows of each number of pairs, in every evaluation."""
    test_rows: int = 64
    """The same in the report, of rows that no evaluation has seen."""


@dataclasses.dataclass(frozen=True)
class MQARConfig(TaskConfig):
    """Trains a small causal model on multi-query associative recall, and reports its accuracy by number of pairs.

    Takes minutes on two CPU cores. The same command again resumes the run.
    """

    command: ClassVar[str] = "mqar"
    brief = ("attention", "positions", "length", "num_keys", "pairs", "steps", "lr", "seeds", "out")
    preset: Literal["quick"] = "quick"
    """Which set of defaults to start from."""
    model: MQARModelConfig = MQARModelConfig()
    data: MQARDataConfig = MQARDataConfig()
    evaluation: MQAREvaluationConfig = MQAREvaluationConfig()

    def _check(self) -> None:
        check_attention(self.model.attention, length=self.data.length)

    def out(self) -> str:
        """The run folder."""
        return self.run.out or f"runs/mqar-{slug(self.model.attention)}"


PRESETS = {
    "quick": MQARConfig(
        optimizer=OptimizerOptions(steps=500, batch_size=16, lr=5e-3),
        evaluation=MQAREvaluationConfig(eval_every=250, log_every=25),
    )
}


def parse(argv: Sequence[str]) -> MQARConfig:
    """The configuration of a command line.

    Examples:
        >>> parse(["--pairs", "4", "8"]).data.pairs
        (4, 8)
    """
    return parse_with_presets(argv, PRESETS, command="mqar")
