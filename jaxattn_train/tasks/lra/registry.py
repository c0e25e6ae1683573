"""The five tasks of the Long Range Arena by name, each with its data and what is published for it."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from jaxattn_train.data.generators import listops, pathfinder
from jaxattn_train.data.sequences import Splits
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.lra import image, retrieval, text
from jaxattn_train.tasks.lra.options import LRADataOptions
from jaxattn_train.tasks.lra.pathfinder_released import load_released
from jaxattn_train.tasks.lra.published import TRAINING, Accuracy, Training, published


@dataclasses.dataclass(frozen=True)
class LRATask:
    """A task and how to get its data."""

    name: str
    classes: tuple[str, ...]
    vocab_size: int
    """Ids are below."""
    max_length: int
    """Tokens of the longest sequence; of each of the two, if there are two."""
    reader: Callable[[LRADataOptions], Splits]
    """What `load` calls."""
    two_tower: bool = False
    """Whether an example is two sequences, whose relation is the class."""

    def load(self, options: LRADataOptions) -> Splits:
        """Reads or generates the data.

        Raises:
            UserError: a file is missing or malformed, or an option is not for this task.
        """
        options.check_for(self.name)
        return self.reader(options)

    @property
    def published(self) -> Mapping[str, Accuracy]:
        """Test accuracies in per cent by mechanism, in Spectraformer's set-up."""
        return published(self.name)

    @property
    def training(self) -> Training:
        """How that set-up trains."""
        return TRAINING[self.name]


def _listops(options: LRADataOptions) -> Splits:
    sizes = options.sizes or listops.SIZES
    spec = listops.ListOpsSpec(options.data_seed or 0, sizes, trees=options.expressions())
    splits = listops.load_listops(spec, folder=options.cache(), workers=options.workers)
    return splits if options.closing_brackets else listops.without_closing_brackets(splits)


def _pathfinder(options: LRADataOptions) -> Splits:
    if options.data_path is not None:
        return _fewer(load_released(options.data_path, cache=options.cache()), options.sizes)
    given = {name: getattr(options, name) for name in ("sizes", "contour_length", "distractors")}
    given = {name: value for name, value in given.items() if value is not None}
    spec = pathfinder.PathfinderSpec(options.data_seed or 0, **given)
    return pathfinder.load_pathfinder(spec, folder=options.cache(), workers=options.workers)


def _text(options: LRADataOptions) -> Splits:
    longest = options.max_length or text.MAX_LENGTH
    return _fewer(text.load_text(options.data_path, max_length=longest), options.sizes)


def _retrieval(options: LRADataOptions) -> Splits:
    longest = options.max_length or text.MAX_LENGTH
    return _fewer(retrieval.load_retrieval(options.data_path, max_length=longest), options.sizes)


def _image(options: LRADataOptions) -> Splits:
    return _fewer(image.load_image(options.data_path), options.sizes)


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
