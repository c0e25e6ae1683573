"""A classification task as the training loop reads it: labelled sequences in three parts."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxattn_train.data.sequences import Sequences


@dataclasses.dataclass(frozen=True)
class ClassificationData:
    """A task, ready to be trained on."""

    name: str
    classes: tuple[str, ...]
    vocab_size: int
    """All ids are below; 0 is padding."""
    max_length: int
    """No sequence is longer."""
    train: Sequences
    validation: Sequences
    test: Sequences | None
    """None if the final numbers are to be of the validation part."""
    ids: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Names of the examples by part; parts that are missing are numbered."""
    texts: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """The texts themselves by part, where they are worth showing."""
    lengths: dict[str, Sequence[Any]] | None = None
    """By part ("train", "validation", "test"), the nested lengths of each example's tree; None without trees."""
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What a checkpoint needs to read new inputs, such as a vocabulary: JSON-able."""
    notes: tuple[str, ...] = ()
    """Lines to print before training, such as how many texts were cut."""

    def parts(self) -> dict[str, Sequences]:
        """The parts that exist, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def digests(self) -> dict[str, str]:
        """By part, the SHA-256 of everything the model reads, in order: a run may resume with equal data only."""
        found = {name: self.digest(name, part) for name, part in self.parts().items()}
        return {
            f"{name.replace('train', 'training')} data": f"sha256:{value}" for name, value in found.items()
        }

    def digest(self, name: str, part: Sequences) -> str:
        """The SHA-256 of a part."""
        digest = hashlib.sha256(repr((self.classes, self.vocab_size, self.max_length)).encode())
        trees = None if self.lengths is None else self.lengths[name]
        digest.update(repr((name, len(part), trees)).encode())
        digest.update(np.ascontiguousarray(part.lengths, "<i4").data)
        digest.update(np.ascontiguousarray(part.labels, "<i4").data)
        for start in range(0, len(part), 256):
            rows = np.arange(start, min(start + 256, len(part)))
            block = part.padded(rows, int(part.lengths[rows].max(initial=1)))
            digest.update(np.ascontiguousarray(block.tokens, "<i4").data)
        return digest.hexdigest()
