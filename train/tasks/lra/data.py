"""A task of the Long Range Arena as the training loop of classifiers reads it."""

import dataclasses
import hashlib

import numpy as np

from train.data.classification import ClassificationData
from train.tasks.lra.registry import LRATask
from train.tasks.lra.split import Padded, Split, Splits

CLASSES: dict[str, tuple[str, ...]] = {
    "listops": tuple("0123456789"),
    "text": ("negative", "positive"),
    "retrieval": ("unrelated", "citing"),
    "image": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    "pathfinder": ("apart", "connected"),
}


@dataclasses.dataclass(frozen=True)
class LRAPart:
    """A split whose examples are sorted by the longest of their sequences."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    @property
    def labels(self) -> np.ndarray:
        """Number of the class of each."""
        return self.split.labels

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each; of the longer of two texts."""
        return self.split.sizes.max(axis=1)

    def padded(self, rows: np.ndarray, length: int) -> Padded:
        """The examples `rows`; see `Split.padded`."""
        return self.split.padded(rows, length)


@dataclasses.dataclass(frozen=True)
class LRAData(ClassificationData):
    """A task, ready to be trained on."""

    two_tower: bool = False
    """Whether an example is two sequences."""

    def sha256(self) -> str:
        """Of the bytes as they are kept: padded, those of retrieval would be 5 GB."""
        digest = hashlib.sha256(repr((self.name, self.vocab_size, self.max_length)).encode())
        for name, part in self.parts().items():
            assert isinstance(part, LRAPart)
            digest.update(f"{name} {part.split.sha256()}".encode())
        return digest.hexdigest()


def as_classification(task: LRATask, splits: Splits, max_length: int | None = None) -> LRAData:
    """Gives a task's data the face that the loop knows.

    Args:
        task: which.
        splits: its data.
        max_length: no sequence is longer; None for the task's.

    Returns:
        The data, with notes of their size, of what was cut, and of how far guessing gets.
    """
    test = np.bincount(splits.test.labels, minlength=task.num_classes)
    most = CLASSES[task.name][test.argmax()]
    notes = [
        f"{len(splits.train):,} examples to train on, {len(splits.validation):,} for validation, "
        f"{len(splits.test):,} for test, of which {test.max() / len(splits.test):.1%} are {most!r}"
    ]
    cut = splits.facts.get("cut_texts_and_bytes")
    if cut:
        notes.append(
            "cut: "
            + ", ".join(
                f"{texts:,} texts of {name} lost {lost:,} bytes" for name, (texts, lost) in cut.items()
            )
        )
    return LRAData(
        name=f"Long Range Arena {task.name}",
        classes=CLASSES[task.name],
        vocab_size=task.vocab_size,
        max_length=max_length or task.max_length,
        train=LRAPart(splits.train),
        validation=LRAPart(splits.validation),
        test=LRAPart(splits.test),
        record={"kind": "lra", "name": task.name, "facts": splits.facts},
        notes=tuple(notes),
        two_tower=task.two_tower,
    )
