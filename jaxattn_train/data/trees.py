"""Trees of texts: families of bounded size, common shapes for each padded length, every tree built once."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxattn.tree.tree import Tree, TreeShape
from jaxattn_train.data.buckets import Kind, bucket_lengths

Nested = Sequence[Any]
NEARLY_ALL = 0.995


def bounded(lengths: Sequence[Sequence[int]], max_branching: int) -> list[Any]:
    """Cuts what is too large for a family into nearly equal parts that stand side by side.

    Only when the text itself has too many paragraphs does the tree get a further level, of groups of them.

    Args:
        lengths: the number of words of each sentence of each paragraph.
        max_branching: the largest family, at least 2.

    Returns:
        Nested lengths of the same words, for `Tree.from_lengths`.

    Examples:
        >>> bounded([[3, 9]], 4), bounded([[1], [2], [1]], 2)
        ([[3, 3, 3, 3]], [[[1], [2]], [[1]]])
    """
    found: list[Any] = []
    for paragraph in lengths:
        sentences = [len(part) for length in paragraph for part in _parts(range(length), max_branching)]
        found += _parts(sentences, max_branching)
    while len(found) > max_branching:
        found = _parts(found, max_branching)
    return found


def shape_of(lengths: Nested) -> TreeShape:
    """The shape of `Tree.from_lengths(lengths)` without causal tiles, for lengths nested equally deep everywhere.

    Examples:
        >>> shape_of([[3, 5], [4]]).children
        ((3, 5), (2, 2), (1, 2))
    """
    families: list[tuple[int, int]] = []
    nodes: list[Any] = [lengths]
    while True:
        if isinstance(nodes[0], int | np.integer):
            families.append((len(nodes), max(nodes)))
            total = sum(nodes)
            return TreeShape(int(total), tuple(reversed(families)), None)
        families.append((len(nodes), max(map(len, nodes))))
        nodes = [child for node in nodes for child in node]


class Shapes(NamedTuple):
    """Which trees share a shape, and so compiled code."""

    of: dict[Kind, TreeShape]
    """By kind of bucket, ascending: every shape fits the trees of all kinds before it."""
    kinds: dict[str, list[Kind]]
    """By part: the bucket of each tree, the first whose shape it fits."""


def common_shapes(lengths: Mapping[str, Sequence[Nested]], max_length: int) -> Shapes:
    """One shape for each padded length, and one for the few trees that are too large for theirs.

    A single text of three hundred sentences of one word would make the tables of all texts of its length eight
    times as large. So the shape of a length fits nearly all of its trees in each size, and the rest go together.

    Args:
        lengths: nested lengths of every tree of every part.
        max_length: as for `Buckets`.

    Returns:
        Shapes whose sizes are powers of two, but for the length itself.

    Examples:
        >>> shapes = common_shapes({"train": [[[3, 5], [4]], [[20]]]}, 32)
        >>> shapes.of[Kind(16)].children
        ((4, 8), (2, 2), (1, 2))
    """
    shapes = {name: [shape_of(nested) for nested in part] for name, part in lengths.items()}
    everything = [shape for part in shapes.values() for shape in part]
    sizes = bucket_lengths(max_length)
    places = np.searchsorted(sizes, [shape.length for shape in everything])
    found: dict[Kind, TreeShape] = {}
    before: list[TreeShape] = []
    for place, length in enumerate(sizes):
        members = [everything[i] for i in np.flatnonzero(places == place)]
        if members:
            before = [_rounded(TreeShape.union([*before, _nearly_all(members)]), length)]
            found[Kind(length)] = before[0]
    wide = Kind(max_length, True)
    chosen: dict[TreeShape, Kind] = {
        shape: next((k for k, s in found.items() if shape.length <= k.length and _fits(shape, s)), wide)
        for shape in set(everything)
    }
    if wide in chosen.values():
        found[wide] = _rounded(TreeShape.union([*before, *chosen]), max_length)
    return Shapes(found, {name: [chosen[shape] for shape in part] for name, part in shapes.items()})


class Trees:
    """The trees of a part, built when they are first needed.

    Args:
        lengths: nested lengths of each example.
        shapes: `common_shapes(...).of`.
        keep: whether they are needed again.
    """

    def __init__(self, lengths: Sequence[Nested], shapes: Mapping[Kind, TreeShape], *, keep: bool = True):
        self._keep = keep
        self._lengths = lengths
        self._shapes = shapes
        self._built: dict[int, Tree] = {}

    def stack(self, rows: Sequence[int] | np.ndarray, kind: Kind) -> Tree:
        """The trees of examples, padded to the common shape of their bucket, as one batch."""
        return Tree.stack([self._tree(int(row)) for row in rows], self._shapes[kind])

    def _tree(self, row: int) -> Tree:
        if row in self._built:
            return self._built[row]
        tree = Tree.from_lengths(self._lengths[row])
        if self._keep:
            # Without the tiles that only causal attention reads: they are three quarters of a tree's bytes.
            self._built[row] = tree.pad(tree.shape._replace(query_tiles=None))
        return tree


def _parts(items: Sequence[Any], most: int) -> list[list[Any]]:
    count = -(-len(items) // most)
    edges = [round(i * len(items) / count) for i in range(count + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(edges)]


def _nearly_all(shapes: Sequence[TreeShape]) -> TreeShape:
    """The size that is enough for nearly all, in each number by itself; of trees of the most frequent height."""
    heights = [len(shape.children) for shape in shapes]
    height = max(sorted(set(heights)), key=heights.count)
    same = [shape for shape in shapes if len(shape.children) == height]
    sizes = np.array([shape.children for shape in same])
    families = np.quantile(sizes, NEARLY_ALL, axis=0, method="higher").astype(int).tolist()
    return TreeShape(max(shape.length for shape in same), tuple(map(tuple, families)), None)


def _rounded(shape: TreeShape, length: int) -> TreeShape:
    return shape.rounded()._replace(length=length)


def _fits(shape: TreeShape, into: TreeShape) -> bool:
    height = len(shape.children)
    below = zip(shape.children, into.children, strict=False)
    return height <= len(into.children) and all(a <= c and b <= d for (a, b), (c, d) in below)
