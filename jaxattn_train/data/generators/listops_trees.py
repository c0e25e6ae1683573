"""Random ListOps expressions, many at once: level by level, with the answers computed from the leaves up.

As in the published generator (Long Range Arena, lra_benchmarks/data/listops.py): a node is an
operator with probability 1/4 and else a digit, uniform in 0–9; at the greatest depth (the root has depth 1)
every node is a digit, so that operators nest at most nine deep for a depth of 10; an operator is one of MIN,
MAX, MED and SM with 2 to 10 arguments, all uniform; the length counts the operator with its bracket, the digits
and the closing bracket, not the parentheses that the published text has besides; an expression is taken if its
length lies strictly between the bounds; the median of an even number of arguments is the mean of the middle
two, rounded down.

Differences: the nodes are drawn a level at a time instead of depth first, and the root is always an operator
(a lone digit would be thrown away for its length). Neither changes the distribution, as nodes are drawn
independently.
"""

import dataclasses

import numpy as np

from jaxattn_train.data.generators.counter_random import Stream, scale
from jaxattn_train.errors import UserError

# Codes; a token's id is its code + 1, so that 0 is left for padding. Digits come first: the code is the digit.
TOKENS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
MIN, MAX, MED, SM, CLOSE = range(10, 15)

_BATCH = 2048  # roots drawn at once; the data of a seed depend on it
_PATIENCE = 200  # batches without one acceptable expression; with the published bounds a third is acceptable


@dataclasses.dataclass(frozen=True)
class TreeSpec:
    """Which expressions are drawn."""

    min_length: int = 500
    """Expressions are longer than this."""
    max_length: int = 2000
    """And shorter than this."""
    max_depth: int = 10
    """Depth of the deepest digit; the root has depth 1."""
    max_args: int = 10
    """Most arguments of an operator; the fewest are 2."""

    def __post_init__(self):
        if not (2 <= self.max_depth <= 20 and self.max_args >= 2 and self.min_length + 1 < self.max_length):
            raise UserError(
                "ListOps needs a depth of 2 to 20, at least 2 arguments and a length between the bounds; got "
                f"{self}."
            )


@dataclasses.dataclass(frozen=True)
class _Level:
    """The nodes of one depth, in reading order; the arguments of its operators are the next level, in order."""

    tree: np.ndarray
    is_operator: np.ndarray
    code: np.ndarray
    arity: np.ndarray  # 0 for digits

    def of(self, keep: np.ndarray) -> "_Level":
        return _Level(self.tree[keep], self.is_operator[keep], self.code[keep], self.arity[keep])


def draw_expressions(stream: Stream, count: int, spec: TreeSpec) -> dict[str, np.ndarray]:
    """The first `count` acceptable expressions of a stream.

    Args:
        stream: of random integers; the result depends on its name only.
        count: how many.
        spec: which are acceptable.

    Returns:
        `codes` uint8 (all tokens one after the other), `lengths` int32 (count,), `labels` uint8 (count,).

    Raises:
        UserError: hardly any expression is acceptable.

    Examples:
        >>> drawn = draw_expressions(Stream("example"), 3, TreeSpec(min_length=4, max_length=12))
        >>> drawn["lengths"].sum() == len(drawn["codes"])
        np.True_
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    fruitless = 0
    while count > 0:
        if fruitless == _PATIENCE:
            raise UserError(f"no ListOps expression is like this, or hardly one: {spec}.")
        levels, lengths = _draw_batch(stream, spec)
        accepted = np.flatnonzero((lengths > spec.min_length) & (lengths < spec.max_length))[:count]
        if not len(accepted):
            fruitless += 1
            continue
        fruitless = 0
        taken = np.zeros(_BATCH, bool)
        taken[accepted] = True
        codes, labels = _write([level.of(taken[level.tree]) for level in levels])
        parts.append((codes, lengths[accepted], labels))
        count -= len(accepted)
    codes, lengths, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {"codes": codes, "lengths": lengths.astype(np.int32), "labels": labels.astype(np.uint8)}


def _draw_batch(stream: Stream, spec: TreeSpec) -> tuple[list[_Level], np.ndarray]:
    levels = []
    tree = np.arange(_BATCH)
    lengths = np.zeros(_BATCH, np.int64)
    for depth in range(1, spec.max_depth + 1):
        if not len(tree):
            break
        # One integer a node: two bits say what it is, two which operator, the lower half how many or which digit.
        bits = stream.bits(len(tree))
        is_operator = bits >> np.uint64(62) == 0
        if depth == 1:
            is_operator[:] = True
        if depth == spec.max_depth:
            is_operator[:] = False
        operator = MIN + (bits >> np.uint64(60) & np.uint64(3)).astype(np.int64)
        code = np.where(is_operator, operator, scale(bits, 10)).astype(np.uint8)
        arity = np.where(is_operator, 2 + scale(bits, spec.max_args - 1), 0)
        levels.append(_Level(tree, is_operator, code, arity))
        lengths += np.bincount(tree, minlength=_BATCH) + np.bincount(tree[is_operator], minlength=_BATCH)
        tree = np.repeat(tree, arity)
    return levels, lengths


def _write(levels: list[_Level]) -> tuple[np.ndarray, np.ndarray]:
    """All expressions as one sequence of codes, and the value of each."""
    sizes: list[np.ndarray] = []  # tokens of each node with all below it, deepest level first
    value = size = np.zeros(0, np.int64)
    for level in reversed(levels):
        here, tokens = level.code.astype(np.int64), np.ones(len(level.code), np.int64)
        if level.is_operator.any():
            arity = level.arity[level.is_operator]
            first = np.cumsum(arity) - arity
            here[level.is_operator] = _evaluate(here[level.is_operator], value, first, arity)
            tokens[level.is_operator] = 2 + np.add.reduceat(size, first)
        value, size = here, tokens
        sizes.append(size)
    labels = value
    codes = np.empty(int(size.sum()), np.uint8)
    position = np.cumsum(size) - size
    for level, size, below in zip(levels, sizes[::-1], [*sizes[-2::-1], np.zeros(0, np.int64)], strict=True):
        codes[position] = level.code
        opened = level.is_operator
        codes[(position + size)[opened] - 1] = CLOSE
        if not opened.any():
            break
        # An argument starts where the ones before it end: sizes summed over the level, less those of other operators.
        arity = level.arity[opened]
        before = np.cumsum(below) - below
        first = np.cumsum(arity) - arity
        position = before + np.repeat(position[opened] + 1 - before[first], arity)
    return codes, labels


def _evaluate(operator: np.ndarray, value: np.ndarray, first: np.ndarray, arity: np.ndarray) -> np.ndarray:
    """The value of each operator from its arguments: `arity` entries of `value` from `first` on."""
    group = np.repeat(np.arange(len(operator)), arity)
    ordered = np.sort(group * 10 + value) % 10  # the arguments of each operator, ascending
    low, high = ordered[first + (arity - 1) // 2], ordered[first + arity // 2]
    choices = (
        ordered[first],
        ordered[first + arity - 1],
        (low + high) // 2,
        np.add.reduceat(value, first) % 10,
    )
    return np.choose(operator - MIN, choices)
