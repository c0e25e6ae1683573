"""Batches of the tasks of the Long Range Arena: a few fixed shapes, an order that can be resumed exactly."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from train.data.buckets import Buckets
from train.tasks.lra.split import Padded, Split


class LRABatches:
    """Endless batches of similar length for training; the position can be saved and set.

    A batch is padded to the shortest of a few lengths that holds its sequences (`buckets.bucket_lengths`), of both
    texts where an example is two. The order is drawn from seed and epoch alone. The last batch of the longest
    sequences is filled up with examples of its own; their weight is 0, so that every shape has `batch_size` rows.

    Args:
        split: the examples.
        max_length: the task's; no sequence is longer.
        batch_size: examples of a batch.
        seed: of the order.
        rows: which rows of the batch this process reads.

    Examples:
        >>> split = Split.end_to_end(np.zeros(90, np.uint8), np.array([10, 50, 30]), np.array([0, 1, 1]))
        >>> batches = LRABatches(split, max_length=100, batch_size=2, seed=0)
        >>> batches.lengths
        (32, 64)
    """

    def __init__(
        self, split: Split, *, max_length: int, batch_size: int, seed: int, rows: slice = slice(None)
    ):
        longest = split.sizes.max(axis=1)
        self._buckets = Buckets(longest, max_length=max_length, batch_size=batch_size)
        self._split, self._seed, self._rows = split, seed, rows
        self._epoch, self._next = 0, 0
        self._order = self._buckets.epoch(seed, 0)

    @property
    def lengths(self) -> tuple[int, ...]:
        """All lengths that batches have, ascending: known before the first."""
        return self._buckets.lengths

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._buckets)

    def __next__(self) -> tuple[Padded, np.ndarray]:
        """The next batch, and the weight of each row, float32: 0 where it only fills up."""
        if self._next == len(self._order):
            self._epoch, self._next = self._epoch + 1, 0
            self._order = self._buckets.epoch(self._seed, self._epoch)
        chosen = self._order[self._next]
        self._next += 1
        return self._padded(chosen.rows, chosen.length)

    def in_order(self) -> Iterator[tuple[Padded, np.ndarray]]:
        """All examples once, short ones first: for evaluation; the position does not change."""
        for chosen in self._buckets.in_order():
            yield self._padded(chosen.rows, chosen.length)

    def get_state(self) -> dict[str, Any]:
        """Where the batches stand, as JSON-able values."""
        return {"seed": self._seed, "epoch": self._epoch, "batch": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a saved place: the next batch is exactly the one that would have come.

        Raises:
            ValueError: the place is of another seed, or there is no such batch.
        """
        if state["seed"] != self._seed or not 0 <= state["batch"] <= len(self):
            raise ValueError(
                f"state must be of seed {self._seed} and a batch from 0 to {len(self)}; got {state}."
            )
        self._epoch, self._next = state["epoch"], state["batch"]
        self._order = self._buckets.epoch(self._seed, self._epoch)

    def _padded(self, rows: np.ndarray, length: int) -> tuple[Padded, np.ndarray]:
        missing = self._buckets.batch_size - len(rows)
        weights = np.repeat(np.array([1, 0], np.float32), [len(rows), missing])
        filled = np.concatenate([rows, np.full(missing, rows[0])])
        return self._split.padded(filled[self._rows], length), weights[self._rows]
