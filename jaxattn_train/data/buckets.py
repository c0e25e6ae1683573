"""Batches of sequences of similar length: few distinct shapes, an order that depends on seed and epoch alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxattn_train.data.generators.counter_random import Stream

SMALLEST = 16


class Kind(NamedTuple):
    """A bucket; kinds are ordered, and every example fits all later ones."""

    length: int
    """Padded length of its sequences."""
    wide: bool = False
    """Whether it is for examples with unusually large trees, of any length."""

    def __str__(self) -> str:
        return f"{self.length}{' (large trees)' if self.wide else ''}"


class Chosen(NamedTuple):
    """Which examples form a batch, and the bucket whose shape it has."""

    kind: Kind
    rows: np.ndarray
    """Indices of the examples, int64, at most a batch."""

    @property
    def length(self) -> int:
        """Padded length of the sequences."""
        return self.kind.length


def bucket_lengths(max_length: int) -> tuple[int, ...]:
    """Powers of two from 16 on below `max_length`, and `max_length` itself.

    Examples:
        >>> bucket_lengths(100)
        (16, 32, 64, 100)
    """
    sizes = [SMALLEST]
    while sizes[-1] < max_length:
        sizes.append(min(sizes[-1] * 2, max_length))
    return tuple(min(size, max_length) for size in sizes)


class Buckets:
    """Examples sorted into buckets by their lengths.

    The remainder of a bucket that does not divide into batches goes to the next longer one; only the very last batch
    may have fewer rows. The order of buckets within an epoch depends on the epoch alone, so that seeds trained
    together see the same shapes; the examples depend on seed and epoch, and on nothing else.

    Args:
        lengths: number of tokens of every example.
        max_length: none is longer.
        batch_size: rows of a batch.
        kinds: the bucket of each example; None goes by the length.
        strata: the group of each example, such as its class. Batches of an epoch hold the groups in their shares of
            the bucket, up to rounding; None leaves it to chance.

    Raises:
        ValueError: there are no examples, or one is longer than `max_length`.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        max_length: int,
        batch_size: int,
        kinds: Sequence[Kind] | None = None,
        strata: np.ndarray | None = None,
    ):
        if not len(lengths) or lengths.max() > max_length:
            raise ValueError(
                f"lengths must be of at least one example and at most {max_length}; got {lengths!r}."
            )
        self.batch_size = batch_size
        self._strata = strata
        every = [*map(Kind, bucket_lengths(max_length)), Kind(max_length, True)]
        if kinds is None:
            places = np.searchsorted(bucket_lengths(max_length), lengths)
        else:
            number = {kind: place for place, kind in enumerate(every)}
            places = np.array([number[kind] for kind in kinds])
        self._members = {
            kind: np.flatnonzero(places == place)
            for place, kind in enumerate(every)
            if (places == place).any()
        }
        self._batches: list[Kind] = []
        """The bucket of every batch of an epoch, in the order of the kinds."""
        left = 0
        for kind, members in self._members.items():
            left += len(members)
            last = kind == max(self._members)
            count = -(-left // batch_size) if last else left // batch_size
            left -= count * batch_size
            self._batches += [kind] * count

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that occur, in order."""
        return tuple(sorted(set(self._batches)))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._batches)

    def in_order(self) -> list[Chosen]:
        """All examples once, short ones first: for evaluation."""
        return self._cut(list(self._members.values()))

    def epoch(self, seed: int, epoch: int) -> list[Chosen]:
        """All examples once, in the order of one epoch.

        Args:
            seed: of the examples.
            epoch: number of the epoch, from 0.

        Returns:
            The batches; those of other seeds are of the same kinds in the same order.
        """
        stream = Stream("buckets", seed, epoch)
        shuffled = [members[_order(stream, len(members))] for members in self._members.values()]
        if self._strata is not None:
            shuffled = [members[_spread(self._strata[members])] for members in shuffled]
        batches = self._cut(shuffled)
        return [batches[i] for i in _order(Stream("lengths", epoch), len(batches))]

    def _cut(self, members: Sequence[np.ndarray]) -> list[Chosen]:
        rows = np.concatenate(members)
        starts = range(0, len(rows), self.batch_size)
        return [
            Chosen(kind, rows[start : start + self.batch_size])
            for kind, start in zip(self._batches, starts, strict=True)
        ]


def _order(stream: Stream, count: int) -> np.ndarray:
    return np.argsort(stream.bits(count), kind="stable")


def _spread(groups: np.ndarray) -> np.ndarray:
    """An order in which every group is spread evenly over the whole, its members as they come."""
    places = np.zeros(len(groups))
    for group in np.unique(groups):
        own = groups == group
        count = own.sum()
        places[own] = (np.arange(count) + 0.5) / count
    return np.argsort(places, kind="stable")
