"""A task of the Long Range Arena as the training loop of classifiers reads it."""

import dataclasses
import hashlib

import numpy as np

from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.sequences import Sequences, Splits
from jaxattn_train.tasks.lra.registry import LRATask


@dataclasses.dataclass(frozen=True)
class LRAData(ClassificationData):
    """A task, ready to be trained on."""

    @property
    def two_tower(self) -> bool:
        """Whether an example is two sequences."""
        return self.train.towers == 2

    def digest(self, name: str, part: Sequences) -> str:
        """The SHA-256 of the bytes as they are kept; padded, those of retrieval would be 5 GB."""
        whole = (self.name, self.vocab_size, self.max_length, name, part.sha256())
        return hashlib.sha256(repr(whole).encode()).hexdigest()


def as_classification(task: LRATask, splits: Splits, max_length: int | None = None) -> LRAData:
    """Wraps a task's data for the training loop.

    Args:
        task: which.
        splits: its data.
        max_length: no sequence is longer; None for the task's.

    Returns:
        The data, with notes of their size, of what was cut, and of the accuracy of a constant guess.
    """
    test = np.bincount(splits.test.labels, minlength=len(task.classes))
    notes = [
        f"{len(splits.train):,} examples to train on, {len(splits.validation):,} for validation, "
        f"{len(splits.test):,} for test, of which {test.max() / len(splits.test):.1%} are "
        f"{task.classes[test.argmax()]!r}"
    ]
    if cut := splits.facts.get("cut_texts_and_bytes"):
        lost = (f"{texts:,} texts of {name} lost {count:,} bytes" for name, (texts, count) in cut.items())
        notes.append(f"cut: {', '.join(lost)}")
    return LRAData(
        name=f"Long Range Arena {task.name}",
        classes=task.classes,
        vocab_size=task.vocab_size,
        max_length=max_length or task.max_length,
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        record={"kind": "lra", "name": task.name, "facts": splits.facts},
        notes=tuple(notes),
    )
