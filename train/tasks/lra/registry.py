"""The five tasks of the Long Range Arena by name, each with its data and what is published for it."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from train.data import download
from train.data.generators import listops, pathfinder
from train.data.generators.listops_trees import TreeSpec
from train.data.sequences import Splits
from train.errors import UserError
from train.tasks.lra import image, retrieval, text
from train.tasks.lra.pathfinder_released import load_released
from train.tasks.lra.published import TRAINING, Accuracy, Training, published


@dataclasses.dataclass(frozen=True)
class LRAConfig:
    """Which data of a task; None is the published value."""

    data_path: str | None = None
    """Location of its files, instead of JAXATTN_DATA, the cache or a download; Pathfinder then is released."""
    sizes: tuple[int, int, int] | None = None
    """Examples for training, validation and test; of files, evenly spaced ones."""
    seed: int = 0
    """Of generated data."""
    workers: int | None = None
    """Processes that generate; None takes one for each processor."""
    max_length: int | None = None
    """text and retrieval: bytes of a text, truncated there."""
    contour_length: int | None = None
    """Generated Pathfinder: dashes of a long path; 14 as published."""
    distractors: int | None = None
    """Generated Pathfinder: short paths, at most; 5 as published."""
    expressions: TreeSpec = dataclasses.field(default_factory=TreeSpec)
    """ListOps: the distribution of expressions."""
    closing_brackets: bool = True
    """ListOps: whether it has them; the published accuracies are without."""
    cache: str | None = None
    """Folder for generated data; None takes the user's cache."""

    def cache_folder(self) -> Path:
        """Where generated data are kept."""
        return Path(self.cache) if self.cache is not None else download.cache() / "lra"


@dataclasses.dataclass(frozen=True)
class LRATask:
    """A task and how to get its data."""

    name: str
    classes: tuple[str, ...]
    vocab_size: int
    """Ids are below."""
    max_length: int
    """Tokens of the longest sequence; of each of the two, if there are two."""
    reader: Callable[[LRAConfig], Splits]
    """What `load` calls."""
    two_tower: bool = False
    """Whether an example is two sequences, whose relation is the class."""

    def load(self, config: LRAConfig) -> Splits:
        """Reads or generates the data.

        Args:
            config: which.

        Raises:
            UserError: a file is missing or malformed, or the task lacks what is asked for.
        """
        if not config.closing_brackets and self.name != "listops":
            raise UserError(f"only listops has closing brackets to leave out; the task is {self.name}.")
        if config.max_length is not None and self.name not in ("text", "retrieval"):
            raise UserError(f"only text and retrieval can be cut; the task is {self.name}.")
        easier = (config.contour_length, config.distractors) != (None, None)
        if easier and (self.name != "pathfinder" or config.data_path is not None):
            raise UserError(
                f"only the generated pathfinder has contour_length and distractors; the task is {self.name}."
            )
        return self.reader(config)

    @property
    def published(self) -> Mapping[str, Accuracy]:
        """Test accuracies in per cent by mechanism, in Spectraformer's set-up."""
        return published(self.name)

    @property
    def training(self) -> Training:
        """How that set-up trains."""
        return TRAINING[self.name]


def _listops(config: LRAConfig) -> Splits:
    if config.data_path is not None:
        raise UserError(
            f"--data-path is not for listops, which is generated; got {config.data_path}. It is for text, retrieval, "
            "image and the released pathfinder."
        )
    spec = listops.ListOpsSpec(config.seed, config.sizes or listops.SIZES, trees=config.expressions)
    splits = listops.load_listops(spec, folder=config.cache_folder(), workers=config.workers)
    return splits if config.closing_brackets else listops.without_closing_brackets(splits)


def _pathfinder(config: LRAConfig) -> Splits:
    if config.data_path is not None:
        return _fewer(load_released(config.data_path, cache=config.cache_folder()), config.sizes)
    given = {name: getattr(config, name) for name in ("seed", "sizes", "contour_length", "distractors")}
    spec = pathfinder.PathfinderSpec(**{name: value for name, value in given.items() if value is not None})
    return pathfinder.load_pathfinder(spec, folder=config.cache_folder(), workers=config.workers)


def _text(config: LRAConfig) -> Splits:
    longest = config.max_length or text.MAX_LENGTH
    return _fewer(text.load_text(config.data_path, max_length=longest), config.sizes)


def _retrieval(config: LRAConfig) -> Splits:
    longest = config.max_length or text.MAX_LENGTH
    return _fewer(retrieval.load_retrieval(config.data_path, max_length=longest), config.sizes)


def _image(config: LRAConfig) -> Splits:
    return _fewer(image.load_image(config.data_path), config.sizes)


def _fewer(splits: Splits, sizes: tuple[int, int, int] | None) -> Splits:
    """Evenly spaced examples of each part, since files may be sorted by label."""
    if sizes is None:
        return splits
    parts = splits[:3]
    if any(not 1 <= size <= len(part) for part, size in zip(parts, sizes, strict=True)):
        available = " / ".join(str(len(part)) for part in parts)
        raise UserError(
            f"the sizes must be at least 1 and at most {available}; got {' / '.join(map(str, sizes))}."
        )
    train, validation, test = (
        part.choose(np.arange(size) * len(part) // size) for part, size in zip(parts, sizes, strict=True)
    )
    return Splits(train, validation, test, {**splits.facts, "taken": list(sizes)})


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LRA_TASKS: dict[str, LRATask] = {
    task.name: task
    for task in (
        LRATask("listops", tuple("0123456789"), listops.VOCABULARY_SIZE, listops.MAX_LENGTH, _listops),
        LRATask("text", ("negative", "positive"), text.VOCABULARY_SIZE, text.MAX_LENGTH, _text),
        LRATask(
            "retrieval", ("unrelated", "citing"), text.VOCABULARY_SIZE, text.MAX_LENGTH, _retrieval, True
        ),
        LRATask("image", _CIFAR10, pathfinder.VOCABULARY_SIZE, image.LENGTH, _image),
        LRATask(
            "pathfinder", ("apart", "connected"), pathfinder.VOCABULARY_SIZE, pathfinder.LENGTH, _pathfinder
        ),
    )
}
