"""Batches of MQAR that depend on the seed and the step alone."""

import numpy as np

from jaxattn_train.data.generators.counter_random import Stream
from jaxattn_train.data.generators.mqar import VERSION, recall_rows
from jaxattn_train.tasks.mqar.config import MQARConfig


class RecallStreams:
    """An endless iterator over the training batches of every seed: {"tokens", "targets"}, (seeds, rows, T) each.

    Args:
        config: of the run.
        rows: which rows of the global batch this process takes.
    """

    def __init__(self, config: MQARConfig, rows: slice):
        self._config, self._rows, self._step = config, rows, 0

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch of every seed."""
        made = [self._batch(seed) for seed in self._config.seeds()]
        self._step += 1
        return {name: np.stack([batch[name][self._rows] for batch in made]) for name in made[0]}

    def _batch(self, seed: int) -> dict[str, np.ndarray]:
        data, optimizer = self._config.data, self._config.optimizer
        stream = Stream("mqar", VERSION, "train", seed, self._step)
        pairs = np.array(data.pairs)[stream.below(len(data.pairs), optimizer.batch_size)]
        until = data.shown_until * optimizer.steps
        left = max(0.0, 1 - self._step / until) if until else 0.0
        shown = stream.below(1 << 16, optimizer.batch_size) < left * (1 << 16)
        return recall_rows(stream, pairs.tolist(), shown.tolist(), length=data.length, num_keys=data.num_keys)

    def get_state(self) -> int:
        """Batches so far."""
        return self._step

    def set_state(self, state: int) -> None:
        """Continues after so many batches."""
        self._step = state


def held_out(config: MQARConfig, part: str, count: int) -> dict[int, dict[str, np.ndarray]]:
    """Number of pairs -> `count` rows as published, the same for all seeds.

    Args:
        config: of the run.
        part: "validation" or "test".
        count: rows of each number.
    """
    data = config.data
    return {
        pairs: recall_rows(
            Stream("mqar", VERSION, part, pairs),
            [pairs] * count,
            [False] * count,
            length=data.length,
            num_keys=data.num_keys,
        )
        for pairs in sorted(set(data.pairs))
    }
