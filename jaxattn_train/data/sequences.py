"""Labelled sequences of token ids, one or several an example, kept end to end."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Padded(NamedTuple):
    """Some examples as fixed integer arrays."""

    tokens: np.ndarray
    """int32 (examples, length), or (examples, 2, length) where an example is two sequences; 0 after the end."""
    lengths: np.ndarray
    """int32 (examples,) or (examples, 2)."""
    labels: np.ndarray
    """int32 (examples,), or (examples, classes) where an example may have several labels."""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Labelled examples of one or two sequences; byte codes take one byte a token in memory."""

    codes: np.ndarray
    """uint8 or int32: the sequences, in any order; equal ones may share their place."""
    starts: np.ndarray
    """int64 (examples, towers): where each sequence starts in `codes`."""
    sizes: np.ndarray
    """int32 (examples, towers): its number of tokens."""
    labels: np.ndarray
    """int32 (examples,) or (examples, classes)."""
    first_id: int = 0
    """Id of code 0; 1 leaves 0 for padding."""

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], labels: Any) -> "Sequences":
        """Concatenates sequences of ids.

        Examples:
            >>> part = Sequences.of([np.array([5, 6, 7]), np.array([8])], [0, 1])
            >>> part.padded(np.array([1, 0]), 4).tokens.tolist()
            [[8, 0, 0, 0], [5, 6, 7, 0]]
        """
        codes = np.concatenate([np.zeros(0, np.int32), *sequences]).astype(np.int32)
        return cls.end_to_end(codes, np.array([len(one) for one in sequences]), labels)

    @classmethod
    def end_to_end(
        cls, codes: np.ndarray, sizes: np.ndarray, labels: Any, *, first_id: int = 0
    ) -> "Sequences":
        """Sequences (one an example) that follow each other in `codes`."""
        starts = np.cumsum(sizes, dtype=np.int64) - sizes
        return cls(
            codes, starts[:, None], sizes.astype(np.int32)[:, None], np.asarray(labels, np.int32), first_id
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def towers(self) -> int:
        """Sequences of an example."""
        return self.starts.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, of the longer of two sequences: int32 (examples,)."""
        return self.sizes.max(axis=1)

    def padded(self, rows: np.ndarray, length: int) -> Padded:
        """The examples `rows`, padded to `length` tokens a sequence.

        Raises:
            ValueError: a sequence is longer than `length`.
        """
        starts, sizes = self.starts[rows], self.sizes[rows]
        if sizes.max(initial=0) > length:
            raise ValueError(f"length must be at least the longest sequence, {sizes.max()}; got {length}.")
        position = np.arange(length)
        real = position < sizes[..., None]
        tokens = np.zeros(real.shape, np.int32)
        tokens[real] = self.codes[(starts[..., None] + position)[real]].astype(np.int32) + self.first_id
        if self.towers == 1:
            tokens, sizes = tokens[:, 0], sizes[:, 0]
        return Padded(tokens, sizes, self.labels[rows])

    def choose(self, rows: slice | np.ndarray) -> "Sequences":
        """Some of the examples, sharing the codes."""
        return dataclasses.replace(
            self, starts=self.starts[rows], sizes=self.sizes[rows], labels=self.labels[rows]
        )

    def sha256(self) -> str:
        """Of labels, lengths and sequences, wherever they lie in `codes`."""
        digest = hashlib.sha256(self.labels.astype("<i4").tobytes())
        digest.update(self.sizes.astype("<i4").tobytes())
        for start, size in zip(self.starts.ravel().tolist(), self.sizes.ravel().tolist(), strict=True):
            digest.update(self.codes[start : start + size].data)
        return digest.hexdigest()


class Splits(NamedTuple):
    """The three parts of a data set."""

    train: Sequences
    validation: Sequences
    test: Sequences
    facts: dict[str, Any]
    """Source, hashes, how much was cut: JSON-able, for the report of a run."""


def split_up(whole: Sequences, sizes: tuple[int, int], facts: dict[str, Any]) -> Splits:
    """Training, validation and test part, in this order.

    Args:
        whole: all examples.
        sizes: of the first two parts; the third is the rest.
        facts: where the examples come from.

    Returns:
        The parts, sharing the codes; the facts also get the hash of the whole.
    """
    train, validation, test = (
        whole.choose(slice(start, end))
        for start, end in ((0, sizes[0]), (sizes[0], sum(sizes)), (sum(sizes), None))
    )
    return Splits(train, validation, test, {**facts, "sha256": whole.sha256()})
