"""The five tasks of the Long Range Arena by name, each with its data and what is published for it."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from train.data import download
from train.data.generators import listops, pathfinder
from train.data.generators.listops_trees import TreeSpec
from train.errors import UserError
from train.tasks.lra import image as lra_image
from train.tasks.lra import retrieval as lra_retrieval
from train.tasks.lra import text as lra_text
from train.tasks.lra.files import PATHFINDER
from train.tasks.lra.pathfinder_released import load_released
from train.tasks.lra.published import TRAINING, Accuracy, Training, published
from train.tasks.lra.split import Split, Splits


@dataclasses.dataclass(frozen=True)
class LRAConfig:
    """Which data of a task."""

    data_path: str | None = None
    """Where its files lie, instead of JAXATTN_DATA, the cache or a download; Pathfinder then is the released one."""
    sizes: tuple[int, int, int] | None = None
    """Examples for training, validation and test; None takes the published numbers. Of files, they are taken evenly
    spaced."""
    seed: int = 0
    """Of generated data."""
    workers: int | None = None
    """Processes that generate; None takes one for each processor."""
    max_length: int | None = None
    """Bytes of a text of text and retrieval, which are cut there; None takes the task's."""
    contour_length: int | None = None
    """Dashes of a long path of the generated Pathfinder; None takes the published 14."""
    distractors: int | None = None
    """Short paths of it, at most; None takes the published 5."""
    expressions: TreeSpec = dataclasses.field(default_factory=TreeSpec)
    """Which expressions ListOps draws."""
    closing_brackets: bool = True
    """Whether ListOps has them; the published accuracies are without."""
    cache: str | None = None
    """Folder for generated data; None takes the user's cache."""

    def cache_folder(self) -> Path:
        """Where generated data are kept."""
        return Path(self.cache) if self.cache is not None else download.cache() / "lra"


@dataclasses.dataclass(frozen=True)
class LRATask:
    """A task and how to get its data."""

    name: str
    vocab_size: int
    """Ids are below."""
    num_classes: int
    max_length: int
    """Tokens of the longest sequence; of each of the two, if there are two."""
    two_tower: bool
    """Whether an example is two sequences, of which the relation is asked."""
    reader: Callable[[LRAConfig], Splits]
    """What `load` calls."""

    def load(self, config: LRAConfig) -> Splits:
        """Reads or generates the data.

        Args:
            config: which.

        Raises:
            UserError: a file is missing or damaged, or the task does not have what is asked for.
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
    spec = listops.ListOpsSpec(
        seed=config.seed, sizes=config.sizes or listops.SIZES, trees=config.expressions
    )
    splits = listops.load_listops(spec, folder=config.cache_folder(), workers=config.workers)
    return splits if config.closing_brackets else listops.without_closing_brackets(splits)


def _pathfinder(config: LRAConfig) -> Splits:
    if config.data_path is not None:
        given = Path(config.data_path)
        path = given if (given / "metadata").is_dir() else download.find(PATHFINDER, config.data_path)
        assert path is not None
        return _fewer(load_released(path, cache=config.cache_folder()), config.sizes)
    usual = pathfinder.PathfinderSpec()
    spec = pathfinder.PathfinderSpec(
        seed=config.seed,
        sizes=config.sizes or usual.sizes,
        contour_length=usual.contour_length if config.contour_length is None else config.contour_length,
        distractors=usual.distractors if config.distractors is None else config.distractors,
    )
    return pathfinder.load_pathfinder(spec, folder=config.cache_folder(), workers=config.workers)


def _text(config: LRAConfig) -> Splits:
    most = config.max_length or lra_text.MAX_LENGTH
    return _fewer(lra_text.load_text(config.data_path, max_length=most), config.sizes)


def _retrieval(config: LRAConfig) -> Splits:
    most = config.max_length or lra_retrieval.MAX_LENGTH
    return _fewer(lra_retrieval.load_retrieval(config.data_path, max_length=most), config.sizes)


def _image(config: LRAConfig) -> Splits:
    return _fewer(lra_image.load_image(config.data_path), config.sizes)


def _fewer(splits: Splits, sizes: tuple[int, int, int] | None) -> Splits:
    if sizes is None:
        return splits
    parts: list[Split] = []
    for part, size in zip(splits[:3], sizes, strict=True):
        assert isinstance(part, Split)
        if not 1 <= size <= len(part):
            there = " / ".join(str(len(part)) for part in splits[:3])
            raise UserError(
                f"the sizes must be at least 1 and at most {there}; got {' / '.join(map(str, sizes))}."
            )
        # Evenly spaced, as files may be sorted by label.
        parts.append(part.choose(np.arange(size) * len(part) // size))
    return Splits(parts[0], parts[1], parts[2], {**splits.facts, "taken": list(sizes)})


LRA_TASKS: dict[str, LRATask] = {
    task.name: task
    for task in (
        LRATask("listops", listops.VOCABULARY_SIZE, 10, listops.MAX_LENGTH, False, _listops),
        LRATask("text", lra_text.VOCABULARY_SIZE, 2, lra_text.MAX_LENGTH, False, _text),
        LRATask("retrieval", lra_retrieval.VOCABULARY_SIZE, 2, lra_retrieval.MAX_LENGTH, True, _retrieval),
        LRATask("image", lra_image.VOCABULARY_SIZE, 10, lra_image.LENGTH, False, _image),
        LRATask("pathfinder", pathfinder.VOCABULARY_SIZE, 2, pathfinder.LENGTH, False, _pathfinder),
    )
}
