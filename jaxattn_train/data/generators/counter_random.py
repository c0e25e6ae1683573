"""Random integers that are the same on every machine: a counter through the mixer of SplitMix64.

The libraries' own generators do not promise that: Python promises a stable `random()` but not `randrange` or
`choice`, numpy its bit generators but not the distributions drawn from them. Generated data must not depend on
versions, so it is drawn from 64-bit integers only, by operations that are exact everywhere.
"""

import hashlib

import numpy as np

# Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


class Stream:
    """An endless stream of 64-bit integers, named by what it is for.

    Args:
        names: strings and integers, such as a task, a seed and a shard; other names give an unrelated stream.

    Examples:
        >>> int(Stream("example", 0).bits(2)[1]) == int(Stream("example", 0).bits(3)[1])
        True
    """

    def __init__(self, *names: str | int):
        digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
        self._key = np.frombuffer(digest[:8], "<u8").astype(np.uint64)
        self._position = 0

    def bits(self, count: int) -> np.ndarray:
        """The next `count` integers, uint64 (count,)."""
        counter = np.arange(self._position + 1, self._position + 1 + count, dtype=np.uint64)
        self._position += count
        mixed = counter * _STEP + self._key  # arrays of unsigned integers wrap around silently, as wanted
        for shift, factor in _MIX:
            mixed = (mixed ^ (mixed >> shift)) * factor
        return mixed ^ (mixed >> np.uint64(31))

    def below(self, bound: int, count: int) -> np.ndarray:
        """The next `count` integers in [0, bound), int64 (count,); see `scale`."""
        return scale(self.bits(count), bound)


def scale(bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Maps the lower 32 bits of each integer to [0, bound); the bias is below bound · 2⁻³².

    Args:
        bits: uint64 of any shape; the upper 32 bits are ignored.
        bound: at most 2³², one for all or one for each.

    Returns:
        int64 of the same shape.

    Examples:
        >>> scale(np.array([0, 2**31, 2**32 - 1], np.uint64), 10).tolist()
        [0, 5, 9]
    """
    return ((bits & np.uint64(0xFFFFFFFF)) * np.asarray(bound, np.uint64) >> np.uint64(32)).astype(np.int64)
