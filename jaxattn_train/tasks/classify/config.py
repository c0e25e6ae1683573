"""Command-line options of classify."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from jaxattn_train.cli.options import EvaluationOptions, OptimizerOptions, TaskConfig
from jaxattn_train.cli.parsing import parse_with_presets
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.shared.options import BRIEF, ClassifierOptions, TextOptions, imply_files

Preset = Literal["sst2-quick", "sst2-study", "imdb-quick", "imdb-study"]
DEFAULT_BRANCHING = 32


@dataclasses.dataclass(frozen=True)
class ClassifyModel(ClassifierOptions):
    """The model."""

    attention: str = "softmax"
    """Mechanism, such as features:oprf-orf:128, or tree, which is over each text's own paragraphs, sentences and
    words; all are listed below."""


@dataclasses.dataclass(frozen=True)
class ClassifyData(TextOptions, at_least={"max_length": 1, "vocabulary": 3, "max_branching": 2}):
    """The texts."""

    dataset: Literal["sst2", "imdb", "files"] = "sst2"
    """sst2 and imdb are downloaded once and checked; files are your own."""
    max_length: int = 64
    """Words of a text at most; longer texts are cut, and their number is printed."""
    vocabulary: int = 10_000
    """Word ids, the most frequent words of the training texts; all others share one id."""
    max_branching: int | None = None
    """With --attention tree: most children of a node; longer sentences and paragraphs are split. By default 32."""


@dataclasses.dataclass(frozen=True)
class ClassifyConfig(TaskConfig):
    """Trains a text classifier from scratch, keeps the best checkpoint by validation accuracy, and reports.

    Start with --preset sst2-quick or imdb-quick (minutes on two CPU cores), or sst2-study or imdb-study (for
    comparisons over seeds); any flag overrides the preset. The same command again resumes the run. For your own
    texts: --train-file texts.csv.
    """

    command: ClassVar[str] = "classify"
    brief = (*BRIEF, "attention", "steps")
    preset: Preset = "sst2-quick"
    """Which set of defaults to start from."""
    model: ClassifyModel = ClassifyModel()
    data: ClassifyData = ClassifyData()

    def max_branching(self) -> int | None:
        """Most children of a node in the texts' trees; None where the model reads no trees."""
        from jaxattn.nn import parse_mechanism  # JAX takes seconds to import

        try:
            mechanism = parse_mechanism(self.model.attention, allow_leak=True)
        except ValueError as error:
            raise UserError(f"--attention: {error}") from error
        return (self.data.max_branching or DEFAULT_BRANCHING) if mechanism.needs_tree else None

    def _check(self) -> None:
        if self.data.max_branching is not None and self.max_branching() is None:
            raise UserError(
                f"--max-branching is for --attention tree, which reads each text's tree; got --attention "
                f"{self.model.attention}."
            )


def _optimizer(steps: int, **more: Any) -> OptimizerOptions:
    base: dict[str, Any] = {"batch_size": 32, "lr": 2e-3, "beta2": 0.98, "weight_decay": 0.05}
    return OptimizerOptions(steps=steps, **(base | more))


PRESETS: dict[str, ClassifyConfig] = {
    "sst2-quick": ClassifyConfig(
        preset="sst2-quick",
        model=ClassifyModel(dropout=0.1),
        optimizer=_optimizer(800, warmup=50 / 800),
        evaluation=EvaluationOptions(eval_every=200, log_every=20),
    ),
    "sst2-study": ClassifyConfig(
        preset="sst2-study",
        model=ClassifyModel(dropout=0.1),
        optimizer=_optimizer(3000, lr=1e-3, warmup=100 / 3000),
        evaluation=EvaluationOptions(eval_every=500, log_every=50),
    ),
    "imdb-quick": ClassifyConfig(
        preset="imdb-quick",
        model=ClassifyModel(num_heads=2, features=32, dropout=0.1),
        data=ClassifyData(dataset="imdb", max_length=256),
        optimizer=_optimizer(400, batch_size=16, lr=3e-3, warmup=50 / 400),
        evaluation=EvaluationOptions(eval_every=200, log_every=20),
    ),
    "imdb-study": ClassifyConfig(
        preset="imdb-study",
        model=ClassifyModel(dropout=0.1),
        data=ClassifyData(dataset="imdb", max_length=512, vocabulary=20_000),
        optimizer=_optimizer(1500, lr=1e-3, warmup=100 / 1500),
        evaluation=EvaluationOptions(eval_every=500, log_every=50),
    ),
}


def parse(argv: Sequence[str]) -> ClassifyConfig:
    """The configuration of a command line.

    Examples:
        >>> parse(["--preset", "imdb-quick", "--attention", "tree"]).max_branching()
        32
    """
    return parse_with_presets(imply_files(argv), PRESETS, command="classify")
