"""Command-line options of lra."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from jaxattn_train.cli.options import (
    EvaluationOptions,
    OptimizerOptions,
    TaskConfig,
    check_attention,
)
from jaxattn_train.cli.parsing import named_in, parse_with_presets, slug
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.lra.options import LRADataOptions
from jaxattn_train.tasks.lra.registry import LRA_TASKS
from jaxattn_train.tasks.shared.options import ClassifierOptions

Task = Literal["listops", "text", "retrieval", "image", "pathfinder"]


@dataclasses.dataclass(frozen=True)
class LRAModelConfig(ClassifierOptions, at_least={"head_features": 1}):
    """The model; the defaults are those of the published set-up."""

    num_heads: int = 2
    """Attention heads; must divide --features."""
    mlp_ratio: float = 2.0
    """Hidden width of the MLPs over --features."""
    head_features: int = 128
    """Width of the hidden layer between the pooled vector (for retrieval: the two) and the classes."""

    def _check(self) -> None:
        super()._check()
        if int(self.mlp_ratio * self.features) < 1:
            raise UserError(f"--mlp-ratio must give the MLPs a width of at least 1; got {self.mlp_ratio}.")


@dataclasses.dataclass(frozen=True)
class LRAOptimizerConfig(OptimizerOptions):
    """Adam with linear warm-up, decay to zero and gradient clipping."""

    decay: Literal["linear", "cosine"] = "linear"
    """How the rate decays after the warm-up."""
    stratify: bool = False
    """Batches hold the classes in their shares of all data. Otherwise the gradient's signal about the difference
    between the classes can be lost in the noise of their unequal numbers in a batch."""

    @property
    def schedule(self) -> str:
        """The value of `decay`."""
        return self.decay


@dataclasses.dataclass(frozen=True)
class LRARunConfig(TaskConfig):
    """Trains a classifier on a task of the Long Range Arena and reports its test accuracy at the best checkpoint.

    --preset paper is the published set-up: 2 layers, 64 wide, 2 heads of 32, hidden width 128, all data, 50,000
    steps (listops without closing brackets); hours on an accelerator. --preset quick keeps the model, without
    dropout, and takes minutes on two CPU cores, with less data: listops, 16,000 expressions of 20 to 127 tokens and
    depth at most 4, 1,500 steps of 32; text, the first 256 bytes of a review, 600 steps of 32; retrieval, 20,000
    pairs of the first 512 bytes, 800 steps of 16; image, 10,000 pictures, 600 steps of 16; pathfinder, 20,000
    pictures of paths of two dashes without distractors, rotary positions and max pooling, 304 steps of 32. Its
    numbers are not comparable with published ones. Any flag overrides the preset; the same command again resumes.
    """

    command: ClassVar[str] = "lra"
    brief = ("task", "preset", "attention", "positions", "data_path", "steps", "lr", "seeds", "out")
    task: Task = "listops"
    """Which task."""
    preset: Literal["quick", "paper"] = "quick"
    """Which set of defaults to start from."""
    model: LRAModelConfig = LRAModelConfig()
    data: LRADataOptions = dataclasses.field(default_factory=LRADataOptions)
    optimizer: LRAOptimizerConfig = LRAOptimizerConfig()

    def out(self) -> str:
        """The run folder."""
        return self.run.out or f"runs/lra-{self.task}-{self.preset}-{slug(self.model.attention)}"

    def _check(self) -> None:
        self.data.check_for(self.task)
        length = self.data.max_length or LRA_TASKS[self.task].max_length
        check_attention(self.model.attention, length=length)


def _paper(task: Task) -> LRARunConfig:
    published = LRA_TASKS[task].training
    return LRARunConfig(
        task=task,
        preset="paper",
        data=LRADataOptions(closing_brackets=task != "listops"),
        model=LRAModelConfig(dropout=0.1),
        optimizer=LRAOptimizerConfig(
            steps=published.steps,
            batch_size=published.batch_size,
            lr=published.learning_rate,
            warmup=published.warmup / published.steps,
            beta2=0.999,
            weight_decay=0.0,
        ),
        evaluation=EvaluationOptions(eval_every=1000 if task == "retrieval" else 500, log_every=100),
    )


def _quick(
    task: Task,
    steps: int,
    batch_size: int,
    lr: float,
    *,
    stratify: bool = False,
    model: LRAModelConfig = LRAModelConfig(dropout=0.0),
    **data: Any,
) -> LRARunConfig:
    return LRARunConfig(
        task=task,
        preset="quick",
        data=LRADataOptions(**data),
        model=model,
        optimizer=LRAOptimizerConfig(
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            warmup=50 / steps,
            beta2=0.98,
            weight_decay=0.0,
            stratify=stratify,
        ),
        evaluation=EvaluationOptions(eval_every=steps // 8, log_every=20),
    )


_QUICK = (
    _quick("listops", 1500, 32, 2e-3, sizes=(16_000, 1000, 2000), min_length=19, max_length=128, max_depth=4),
    # Without `stratify` two of three seeds learn nothing: the mean over bytes is nearly the same for all texts, and
    # its noise hides the rest of the gradient (docs/lra.md).
    _quick("text", 600, 32, 1e-3, stratify=True, sizes=(22_500, 500, 2000), max_length=256),
    _quick("retrieval", 800, 16, 1e-3, stratify=True, sizes=(20_000, 500, 2000), max_length=512),
    _quick("image", 600, 16, 1e-3, sizes=(10_000, 500, 1000)),
    # The published task cannot be learned in minutes. Here the distance between the two dots alone gives 79 %, rotary
    # positions encode distances, and max pooling keeps two dots among 1,022 other pixels.
    _quick(
        *("pathfinder", 304, 32, 2e-3),
        stratify=True,
        model=LRAModelConfig(dropout=0.0, positions="rotary", pooling="max"),
        sizes=(20_000, 500, 2000),
        contour_length=2,
        distractors=0,
    ),
)
PRESETS: dict[str, dict[str, LRARunConfig]] = {
    quick.task: {"quick": quick, "paper": _paper(quick.task)} for quick in _QUICK
}


def _of_files(config: LRARunConfig) -> LRARunConfig:
    """The preset without what only generated pictures have."""
    data = dataclasses.replace(config.data, contour_length=None, distractors=None)
    return dataclasses.replace(config, data=data)


def parse(argv: Sequence[str]) -> LRARunConfig:
    """The configuration of a command line: task and preset give the defaults.

    Examples:
        >>> parse(["--task", "text", "--preset", "paper"]).optimizer.lr
        0.0001
    """
    presets = PRESETS[named_in(argv, "--task", PRESETS)]
    if any(word.split("=")[0] == "--data-path" for word in argv):
        presets = {name: _of_files(config) for name, config in presets.items()}
    return parse_with_presets(argv, presets, command="lra")
