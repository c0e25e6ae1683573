"""The outline of a tree, its children counted depth first: what builders produce and tables are built from."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Outline(NamedTuple):
    """One tree on the host. Nodes of a level are numbered depth first, so siblings have consecutive numbers.

    Attributes:
        length: T, the number of token slots.
        tokens: (n,) the leaves depth first; the other token slots are padding.
        sizes: sizes[l][f] is the number of children of node f of level l + 1; the last has one entry, the root.
    """

    length: int
    tokens: Int[np.ndarray, " n"]
    sizes: tuple[Int[np.ndarray, " F"], ...]

    @property
    def is_ordered(self) -> bool:
        """Whether the leaves are in sequence order."""
        return bool(np.all(np.diff(self.tokens) > 0))

    def raised(self, height: int) -> "Outline":
        """The same tree with single-child nodes above the root, up to `height`."""
        chain = [np.ones(1, np.int64)] * (height - len(self.sizes))
        return self._replace(sizes=(*self.sizes, *chain))


def check_size(name: str, value: Any, least: int) -> int:
    """Returns `value` as an int; raises unless it is an integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}; got {value!r}.")
    return int(value)


def check_length(length: int | None, leaves: int) -> int:
    """The number of token slots: `length`, which must be at least `leaves`, or `leaves` if None."""
    if length is None:
        return leaves
    if check_size("length", length, 1) < leaves:
        raise ValueError(f"length must be at least {leaves}, the number of leaves of the tree; got {length}.")
    return int(length)


def uniform_branching(length: int, branching: int | np.integer | Sequence[int]) -> tuple[int, ...]:
    """The branching of every level: the last one given repeats until one root remains."""
    given = [branching] if isinstance(branching, int | np.integer) else list(branching)
    if not given:
        raise ValueError("branching must be an integer >= 2 or several, from the leaves up; got none.")
    given = [check_size(f"branching[{i}]", b, 2) for i, b in enumerate(given)]
    nodes = check_size("length", length, 1)
    found: list[int] = []
    while nodes > 1 or not found:
        # The root may have fewer children than asked for.
        found.append(min(given[min(len(found), len(given) - 1)], nodes))
        nodes = -(-nodes // found[-1])
    return tuple(found)


def uniform_outline(length: int, branching: tuple[int, ...]) -> Outline:
    """The outline of a uniform tree; the last node of a level has the remaining children."""
    sizes, nodes = [], length
    for width in branching:
        parents = -(-nodes // width)
        level = np.full(parents, width)
        level[-1] = nodes - (parents - 1) * width
        sizes.append(level)
        nodes = parents
    return Outline(length, np.arange(length), tuple(sizes))


def from_preorder(
    depths: Int[np.ndarray, " E"],
    sizes: Int[np.ndarray, " E"],
    tokens: Int[np.ndarray, " n"],
    length: int | None,
) -> Outline:
    """From the depth and the number of children (0 for a leaf) of all nodes in preorder."""
    height = int(depths.max())
    inner = sizes > 0
    # A shallow leaf also stands for the single-child nodes above it, one at every depth from its own on.
    levels = [
        np.where(inner, sizes, 1)[np.where(inner, depths == depth, depths <= depth)]
        for depth in range(height - 1, -1, -1)
    ]
    return Outline(check_length(length, len(tokens)), tokens, tuple(levels))


def from_starts(
    tokens: Int[np.ndarray, " n"], starts: Sequence[Bool[np.ndarray, " n"]], length: int | None
) -> Outline:
    """From masks of the leaves, depth first, at which a node of level 1, 2, … starts, excluding the root."""
    root = np.arange(len(tokens)) == 0
    marks = [np.ones(len(tokens), np.int64), *starts, root]
    sizes = [
        np.add.reduceat(low.astype(np.int64), np.flatnonzero(high)) for low, high in itertools.pairwise(marks)
    ]
    return Outline(check_length(length, len(tokens)), tokens, tuple(sizes))


def joined(outlines: Sequence[Outline]) -> Outline:
    """The outline of trees side by side under a new root, their tokens concatenated."""
    height = max(len(outline.sizes) for outline in outlines)
    raised = [outline.raised(height) for outline in outlines]
    ends = np.cumsum([outline.length for outline in outlines])
    tokens = [outline.tokens + end - outline.length for outline, end in zip(outlines, ends, strict=True)]
    levels = [np.concatenate(sizes) for sizes in zip(*(outline.sizes for outline in raised), strict=True)]
    return Outline(int(ends[-1]), np.concatenate(tokens), (*levels, np.array([len(outlines)])))
