"""Command-line options of lra."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from train.cli.options import (
    EvaluationOptions,
    OptimizerOptions,
    Options,
    TaskConfig,
    check_attention,
    flag,
)
from train.cli.parsing import named_in, parse_with_presets
from train.data.generators.listops_trees import TreeSpec
from train.errors import UserError
from train.tasks.lra.registry import LRA_TASKS, LRAConfig
from train.tasks.shared.options import ClassifierOptions

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
        check_attention(self.attention)


@dataclasses.dataclass(frozen=True)
class LRADataConfig(Options, at_least={"max_length": 1, "min_length": 0, "data_seed": 0, "workers": 1}):
    """The data. None takes what the task is published with."""

    data_path: str | None = None
    """Where the files of text, retrieval, image or the released pathfinder lie, instead of JAXATTN_DATA, the cache or
    a download; pathfinder without it is generated, as listops always is."""
    sizes: tuple[int, int, int] | None = None
    """Examples for training, validation and test; of files, evenly spaced ones."""
    max_length: int | None = None
    """text and retrieval: bytes of a text, cut there; listops: expressions are shorter."""
    min_length: int | None = None
    """listops: expressions are longer."""
    max_depth: int | None = None
    """listops: depth of the deepest digit, the root having 1."""
    contour_length: int | None = None
    """pathfinder, generated: dashes of the two long paths; published are 14."""
    distractors: int | None = None
    """pathfinder, generated: short paths, at most; published are 5."""
    closing_brackets: bool = True
    """listops: keep the token "]", which the published pipeline loses."""
    data_seed: int | None = None
    """Of generated data; by default 0. All runs that are compared should have the same."""
    workers: int | None = None
    """Processes that generate; by default one for each processor."""
    data_cache: str | None = None
    """Folder for generated data and pictures read once; by default the user's cache."""


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
    task: Task = "listops"
    """Which task."""
    preset: Literal["quick", "paper"] = "quick"
    """Which set of defaults to start from."""
    model: LRAModelConfig = LRAModelConfig()
    data: LRADataConfig = LRADataConfig()
    optimizer: LRAOptimizerConfig = LRAOptimizerConfig()

    def out(self) -> str:
        """The run folder."""
        return self.run.out or f"runs/lra-{self.task}-{self.preset}-{slug(self.model.attention)}"

    def _check(self) -> None:
        data, task = self.data, self.task
        files = task == "pathfinder" and data.data_path is not None
        drawn = task in ("listops", "pathfinder") and not files
        for names, fine, whose in (
            (["data_path"], task != "listops", "the tasks that are read from files"),
            (["min_length", "max_depth"], task == "listops", "listops"),
            (["max_length"], task in ("listops", "text", "retrieval"), "listops, text and retrieval"),
            (["contour_length", "distractors"], task == "pathfinder" and not files, "pathfinder, generated"),
            (["data_seed", "workers"], drawn, "listops and pathfinder, generated"),
            (["data_cache"], task in ("listops", "pathfinder"), "listops and pathfinder"),
        ):
            for name in names:
                if getattr(data, name) is not None and not fine:
                    raise UserError(f"{flag(name)} is for {whose}; got it with --task {task}.")
        if not data.closing_brackets and task != "listops":
            raise UserError(f"--no-closing-brackets is for listops; got it with --task {task}.")
        if data.sizes is not None and min(data.sizes) < 1:
            raise UserError(f"--sizes must be at least 1 each; got {' '.join(map(str, data.sizes))}.")
        for name, least, most in (("contour_length", 2, 14), ("distractors", 0, 5), ("max_depth", 2, 20)):
            value = getattr(data, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{flag(name)} must be {least} to {most}; got {value}.")
        if task == "listops":
            self.data_config()  # raises where no length is between the bounds

    def data_config(self) -> LRAConfig:
        """Which data of the task."""
        data, usual = self.data, TreeSpec()
        listops = self.task == "listops"
        expressions = TreeSpec(
            min_length=usual.min_length if data.min_length is None else data.min_length,
            max_length=data.max_length if listops and data.max_length is not None else usual.max_length,
            max_depth=data.max_depth or usual.max_depth,
        )
        return LRAConfig(
            data_path=data.data_path,
            sizes=data.sizes,
            seed=data.data_seed or 0,
            workers=data.workers,
            max_length=None if listops else data.max_length,
            contour_length=data.contour_length,
            distractors=data.distractors,
            expressions=expressions,
            closing_brackets=data.closing_brackets,
            cache=data.data_cache,
        )


def slug(attention: str) -> str:
    """The spelling of a mechanism as a folder name.

    Examples:
        >>> slug("features:oprf-orf:128+gate=running")
        'features-oprf-orf-128+gate=running'
    """
    return re.sub(r"[^\w.+=-]+", "-", attention)


def _paper(task: Task) -> LRARunConfig:
    published = LRA_TASKS[task].training
    return LRARunConfig(
        task=task,
        preset="paper",
        data=LRADataConfig(closing_brackets=task != "listops"),
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
        data=LRADataConfig(**data),
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
