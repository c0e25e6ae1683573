"""What every task of the Long Range Arena is made of: labelled sequences of codes below 256, kept end to end."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import numpy as np


class Padded(NamedTuple):
    """Some examples as fixed integer arrays."""

    tokens: np.ndarray
    """int32 (examples, length), or (examples, 2, length) where an example is two texts; 0 after the end."""
    lengths: np.ndarray
    """int32 (examples,) or (examples, 2)."""
    labels: np.ndarray
    """int32 (examples,)."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Labelled examples of one or two sequences; one byte a token, as padded int32 would take up to 4 GB."""

    codes: np.ndarray
    """uint8: the sequences; equal ones may share their place."""
    starts: np.ndarray
    """int64 (examples, towers): where each sequence starts in `codes`."""
    sizes: np.ndarray
    """int32 (examples, towers): how long it is."""
    labels: np.ndarray
    """int32 (examples,)."""
    first_id: int = 1
    """Id of code 0; 1 leaves 0 for padding, 0 is for sequences that all have the full length."""
    cut: tuple[int, int] = (0, 0)
    """Sequences that were longer than the task's length and lost their end, and how many tokens that were."""

    @classmethod
    def end_to_end(
        cls, codes: np.ndarray, sizes: np.ndarray, labels: np.ndarray, first_id: int = 1
    ) -> "Split":
        """Sequences (one an example) that follow each other in `codes`."""
        ends = np.cumsum(sizes, dtype=np.int64)
        starts = (ends - sizes)[:, None]
        return cls(codes, starts, sizes.astype(np.int32)[:, None], labels.astype(np.int32), first_id)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def towers(self) -> int:
        """Sequences of an example."""
        return self.starts.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """int32 (examples,), or (examples, 2) for two towers."""
        return self.sizes[:, 0] if self.towers == 1 else self.sizes

    def padded(self, rows: np.ndarray, length: int) -> Padded:
        """The examples `rows` with `length` tokens a sequence.

        Args:
            rows: indices of examples.
            length: at least the length of each of them.

        Returns:
            Tokens, lengths and labels.

        Raises:
            ValueError: a sequence is longer than `length`.

        Examples:
            >>> split = Split.end_to_end(np.array([6, 7, 8], np.uint8), np.array([2, 1]), np.array([1, 0]))
            >>> split.padded(np.array([1, 0]), 3).tokens.tolist()
            [[9, 0, 0], [7, 8, 0]]
        """
        starts, sizes = self.starts[rows], self.sizes[rows]
        if sizes.max(initial=0) > length:
            raise ValueError(f"length must be at least the longest sequence, {sizes.max()}; got {length}.")
        place = np.arange(length)
        within = place < sizes[..., None]
        tokens = np.zeros(within.shape, np.int32)
        tokens[within] = self.codes[(starts[..., None] + place)[within]].astype(np.int32) + self.first_id
        if self.towers == 1:
            tokens, sizes = tokens[:, 0], sizes[:, 0]
        return Padded(tokens, sizes, self.labels[rows])

    def choose(self, rows: slice | np.ndarray) -> "Split":
        """Some of the examples, sharing the codes."""
        return dataclasses.replace(
            self, starts=self.starts[rows], sizes=self.sizes[rows], labels=self.labels[rows]
        )

    def sha256(self) -> str:
        """Of labels, lengths and sequences, whatever their place in `codes`."""
        digest = hashlib.sha256(self.labels.astype("<i4").tobytes())
        digest.update(self.sizes.astype("<i4").tobytes())
        for start, size in zip(self.starts.ravel().tolist(), self.sizes.ravel().tolist(), strict=True):
            digest.update(self.codes[start : start + size].data)
        return digest.hexdigest()


class Splits(NamedTuple):
    """A task's data."""

    train: Split
    validation: Split
    test: Split
    facts: dict[str, Any]
    """Where it comes from, hashes, what was cut: JSON-able, for the report of a run."""


def split_up(whole: Split, sizes: tuple[int, int], facts: dict[str, Any]) -> Splits:
    """Training, validation and test from one split, in this order.

    Args:
        whole: all examples.
        sizes: of the first two parts; the third is the rest.
        facts: where the examples come from.

    Returns:
        The parts, sharing the codes; the facts also get the whole's hash.
    """
    first, second = sizes[0], sizes[0] + sizes[1]
    return Splits(
        whole.choose(slice(first)),
        whole.choose(slice(first, second)),
        whole.choose(slice(second, None)),
        {**facts, "sha256": whole.sha256()},
    )


class SplitBuilder:
    """Collects byte strings into a split; the id of a byte is its value + 1.

    Args:
        max_length: what is longer loses its end, as the tasks specify; `Split.cut` counts it.
        towers: sequences of an example.

    Examples:
        >>> builder = SplitBuilder(max_length=5)
        >>> for label, text in enumerate([b"long text", b"short"]):
        ...     builder.add(label, text)
        >>> split = builder.build()
        >>> split.lengths.tolist(), split.cut
        ([5, 5], (1, 4))
    """

    def __init__(self, *, max_length: int, towers: int = 1):
        self._max_length, self._towers = max_length, towers
        self._codes = bytearray()
        self._places: dict[bytes, int] = {}  # papers occur in many pairs: each is kept once
        self._starts: list[int] = []
        self._sizes: list[int] = []
        self._labels: list[int] = []
        self._cut = [0, 0]

    def add(self, label: int, *texts: bytes) -> None:
        """Adds an example of `towers` texts."""
        self._labels.append(label)
        for text in texts:
            kept = text[: self._max_length]
            if len(text) > len(kept):
                self._cut[0] += 1
                self._cut[1] += len(text) - len(kept)
            if kept not in self._places:
                self._places[kept] = len(self._codes)
                self._codes += kept
            self._starts.append(self._places[kept])
            self._sizes.append(len(kept))

    def build(self) -> Split:
        """The split of all that was added."""
        return Split(
            np.frombuffer(bytes(self._codes), np.uint8),
            np.array(self._starts, np.int64).reshape(-1, self._towers),
            np.array(self._sizes, np.int32).reshape(-1, self._towers),
            np.array(self._labels, np.int32),
            cut=(self._cut[0], self._cut[1]),
        )
