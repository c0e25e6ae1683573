"""The small face between a classification task and the training loop: labelled sequences in three parts."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Padded(NamedTuple):
    """Some examples as fixed integer arrays."""

    tokens: np.ndarray
    """int32 (examples, length); 0 after the end."""
    lengths: np.ndarray
    """int32 (examples,)."""
    labels: np.ndarray
    """int32 (examples,)."""


class Part(Protocol):
    """Labelled sequences: what a task provides for training, validation and test."""

    @property
    def labels(self) -> np.ndarray:
        """Number of the class of each, int32 (examples,)."""

    def __len__(self) -> int:
        """Number of examples."""

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each, int32 (examples,)."""

    def padded(self, rows: np.ndarray, length: int) -> Any:
        """The examples `rows` as a named tuple with the fields of `Padded`."""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """A part whose sequences are kept end to end."""

    codes: np.ndarray
    """int32: all sequences one after the other."""
    offsets: np.ndarray
    """int64 (examples + 1,): where each starts and the last one ends."""
    labels: np.ndarray
    """int32 (examples,)."""

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], labels: Sequence[int]) -> "Sequences":
        """Puts sequences end to end.

        Examples:
            >>> part = Sequences.of([np.array([5, 6, 7]), np.array([8])], [0, 1])
            >>> part.padded(np.array([1, 0]), 4).tokens.tolist()
            [[8, 0, 0, 0], [5, 6, 7, 0]]
        """
        offsets = np.cumsum([0, *map(len, sequences)])
        codes = np.concatenate(sequences).astype(np.int32) if len(sequences) else np.zeros(0, np.int32)
        return cls(codes, offsets, np.asarray(labels, np.int32))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each."""
        return np.diff(self.offsets).astype(np.int32)

    def padded(self, rows: np.ndarray, length: int) -> Padded:
        """The examples `rows` with `length` tokens each; ValueError if one is longer."""
        lengths = self.lengths[rows]
        if lengths.max(initial=0) > length:
            raise ValueError(
                f"length must be at least {lengths.max()}, as long as the longest; got {length}."
            )
        tokens = np.zeros((len(rows), length), np.int32)
        for row, index in zip(tokens, rows, strict=True):
            start, end = self.offsets[index], self.offsets[index + 1]
            row[: end - start] = self.codes[start:end]
        return Padded(tokens, lengths, self.labels[rows])


@dataclasses.dataclass(frozen=True)
class ClassificationData:
    """A task, ready to be trained on."""

    name: str
    classes: tuple[str, ...]
    vocab_size: int
    """Ids are below; 0 is padding."""
    max_length: int
    """No sequence is longer."""
    train: Part
    validation: Part
    test: Part | None
    """None if the numbers at the end are to be of the validation part."""
    ids: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Names of the examples of "validation" and "test"; those that are missing are numbered."""
    lengths: dict[str, Sequence[Any]] | None = None
    """For every part ("train", "validation", "test") the nested lengths of each example's tree; None without."""
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What a checkpoint should keep to read new inputs: JSON-able, such as a vocabulary."""
    notes: tuple[str, ...] = ()
    """Lines to print before training, such as how many texts were cut."""

    def parts(self) -> dict[str, Part]:
        """The parts that there are, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def sha256(self) -> str:
        """Of everything that the model reads, and in which order: a run may only go on with equal data."""
        digest = hashlib.sha256(repr((self.classes, self.vocab_size, self.max_length)).encode())
        for name, part in self.parts().items():
            lengths = part.lengths
            digest.update(
                repr((name, len(part), None if self.lengths is None else self.lengths[name])).encode()
            )
            digest.update(np.ascontiguousarray(lengths, "<i4").data)
            digest.update(np.ascontiguousarray(part.labels, "<i4").data)
            for start in range(0, len(part), 256):
                rows = np.arange(start, min(start + 256, len(part)))
                block = part.padded(rows, int(lengths[rows].max(initial=1)))
                digest.update(np.ascontiguousarray(block.tokens, "<i4").data)
        return digest.hexdigest()
