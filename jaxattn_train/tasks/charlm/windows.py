"""Windows of a text: random ones for training, through Grain, and consecutive ones for evaluation."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np


def random_windows(
    tokens: np.ndarray, *, context_length: int, batch_size: int, seed: int, rows: slice = slice(None)
) -> grain.DatasetIterator:
    """An endless iterator over batches of random windows, whose position can be saved and set.

    Every start position comes once an epoch, in an order drawn from `seed`; epochs follow each other without a
    seam. The order depends on nothing else, so any number of processes reads the same global batch.

    Args:
        tokens: the text, int32 (length,).
        context_length: T; a window has T + 1 tokens, so that it holds its own targets.
        batch_size: windows of the global batch.
        seed: of the order.
        rows: which rows of the global batch this process reads.

    Returns:
        Iterator over int32 arrays (rows, T + 1), with `get_state()` and `set_state(state)`.

    Examples:
        >>> batches = random_windows(np.arange(100), context_length=8, batch_size=4, seed=0)
        >>> next(batches).shape
        (4, 9)
    """
    window = np.arange(context_length + 1)

    def gather(starts: np.ndarray) -> np.ndarray:
        return tokens[starts[rows, None] + window]

    starts = grain.MapDataset.range(len(tokens) - context_length).seed(seed).shuffle()
    batches = starts.repeat(reseed_each_epoch=True).batch(batch_size).map(gather)
    # One thread reads ahead: a batch costs well under a millisecond, and cores are for the model.
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))


class SeedStreams:
    """One stream of random windows for each seed, read in step; each seed's data is its own."""

    def __init__(self, tokens: np.ndarray, *, seeds: Sequence[int], **kwargs: Any):
        self._streams = [random_windows(tokens, seed=seed, **kwargs) for seed in seeds]

    def __next__(self) -> np.ndarray:
        """The next batch of every seed, int32 (seeds, rows, T + 1)."""
        return np.stack([next(stream) for stream in self._streams])

    def get_state(self) -> list[Any]:
        """The position of each stream, as JSON-able values."""
        return [stream.get_state() for stream in self._streams]

    def set_state(self, state: list[Any]) -> None:
        """Restores positions: the next batch is exactly the one that would have come."""
        for stream, position in zip(self._streams, state, strict=True):
            stream.set_state(position)


def consecutive_windows(tokens: np.ndarray, *, context_length: int, count: int | None = None) -> np.ndarray:
    """Consecutive windows whose targets do not overlap, from the start; all of them or `count` evenly spaced ones.

    Args:
        tokens: the text, int32 (length,).
        context_length: T; windows start every T tokens and hold T + 1.
        count: how many to take, None for all.

    Returns:
        int32 (windows, T + 1).

    Examples:
        >>> consecutive_windows(np.arange(7), context_length=3).tolist()
        [[0, 1, 2, 3], [3, 4, 5, 6]]
    """
    available = (len(tokens) - 1) // context_length
    chosen = np.arange(available)
    if count is not None and count < available:
        chosen = np.linspace(0, available - 1, count).round().astype(int)
    return tokens[chosen[:, None] * context_length + np.arange(context_length + 1)]
