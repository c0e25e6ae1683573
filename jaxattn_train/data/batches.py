"""Batches of labelled sequences with their masks, weights and trees, as host arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxattn_train.data.buckets import Buckets, Chosen, Kind
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.data.trees import Trees

Batch = dict[str, Any]
"""tokens (B, T) int32, mask (B, T) bool, labels (B,) int32, weights (B,) float32, and tree: a batch of trees or None.
Where an example is two sequences, tokens and mask are (B, 2, T).

The weights have mean 1: rows that only fill up a batch have weight 0, and the others are scaled up.
"""


def make_batch(
    part: Sequences, trees: Trees | None, chosen: Chosen, batch_size: int, rows: slice = slice(None)
) -> Batch:
    """Some examples as arrays.

    Args:
        part: the examples.
        trees: theirs; None without.
        chosen: which, and of what bucket.
        batch_size: rows; missing ones repeat the first example at weight 0.
        rows: which of these rows to make.

    Returns:
        The batch.
    """
    real = len(chosen.rows)
    filled = np.concatenate([chosen.rows, np.full(batch_size - real, chosen.rows[0])])[rows]
    weights = np.where(np.arange(batch_size) < real, batch_size / real, 0).astype(np.float32)[rows]
    padded = part.padded(filled, chosen.length)
    return {
        "tokens": padded.tokens,
        "mask": np.arange(chosen.length) < padded.lengths[..., None],
        "labels": padded.labels,
        "weights": weights,
        "tree": None if trees is None else trees.stack(filled, chosen.kind),
    }


class BatchStream:
    """Endless batches for several seeds at once, each with its own order; the position can be saved and restored.

    Args:
        part: the examples to train on.
        trees: theirs; None without.
        buckets: how they are grouped.
        seeds: one order each.
        rows: which rows of a batch this process reads.
    """

    def __init__(
        self,
        part: Sequences,
        trees: Trees | None,
        buckets: Buckets,
        *,
        seeds: Sequence[int],
        rows: slice = slice(None),
    ):
        self._part, self._trees, self._buckets, self._rows = part, trees, buckets, rows
        self._seeds = tuple(seeds)
        self._epoch, self._next = 0, 0
        self._orders: list[list[Chosen]] | None = None

    def __next__(self) -> Batch:
        """The next batch of every seed: arrays (seeds, rows, ...)."""
        if self._next == len(self._buckets):
            self._epoch, self._next, self._orders = self._epoch + 1, 0, None
        if self._orders is None:
            self._orders = [self._buckets.epoch(seed, self._epoch) for seed in self._seeds]
        batches = [
            make_batch(self._part, self._trees, order[self._next], self._buckets.batch_size, self._rows)
            for order in self._orders
        ]
        self._next += 1
        return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)

    def get_state(self) -> dict[str, int]:
        """The position, as JSON-able values."""
        return {"epoch": self._epoch, "batch": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Restores a position: the next batch is exactly the one that would have come."""
        self._epoch, self._next, self._orders = state["epoch"], state["batch"], None

    def examples(self) -> dict[Kind, Batch]:
        """A batch of every kind that occurs, for its shapes."""
        first = {chosen.kind: chosen for chosen in reversed(self._buckets.in_order())}
        size = self._buckets.batch_size
        made = {kind: make_batch(self._part, self._trees, first[kind], size) for kind in sorted(first)}
        seeds = len(self._seeds)
        return {kind: jax.tree.map(lambda x: np.stack([x] * seeds), batch) for kind, batch in made.items()}
