"""The sizes of the tables of a tree: trees of one shape share compiled code."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxattn.tree.builders.outline import Outline

Sizes = tuple[tuple[int, int], ...]


class TreeShape(NamedTuple):
    """Sizes of the tables of a tree, to pad trees to; hashable.

    Attributes:
        length: T, the number of token slots.
        children: (F_l, b_l), the shape of the table of children of each level from the leaves up.
        query_tiles: (P_l, R_l), the shape of the query tiles of levels 1 … L − 1; None for an unordered tree.

    Examples:
        >>> from jaxattn import Tree
        >>> Tree.from_lengths([[3, 5], [4]]).shape
        TreeShape(length=12, children=((3, 5), (2, 2), (1, 2)), query_tiles=((2, 8), (1, 16)))
    """

    length: int
    children: Sizes
    query_tiles: Sizes | None

    @staticmethod
    def union(shapes: "Iterable[TreeShape]") -> "TreeShape":
        """The smallest shape that trees of all the given shapes can be padded to.

        Lower trees get single-child nodes above their roots. There are query tiles only if all shapes have them.

        Args:
            shapes: one or more shapes.

        Returns:
            The common shape.

        Raises:
            ValueError: there are no shapes.

        Examples:
            >>> from jaxattn import Tree
            >>> one, two = Tree.from_lengths([3, 5]), Tree.from_lengths([2, 2, 2])
            >>> TreeShape.union([one.shape, two.shape]).children
            ((3, 5), (1, 3))
        """
        shapes = list(shapes)
        if not shapes:
            raise ValueError("shapes must hold at least one TreeShape; got none.")
        height = max(len(shape.children) for shape in shapes)
        shapes = [shape._raised(height) for shape in shapes]
        # A tree never needs more tiles when they get wider, so the largest count is enough for all.
        tiles = [shape.query_tiles for shape in shapes if shape.query_tiles is not None]
        return TreeShape(
            max(shape.length for shape in shapes),
            _largest([shape.children for shape in shapes]),
            _largest(tiles) if len(tiles) == len(shapes) else None,
        )

    def rounded(self) -> "TreeShape":
        """The shape with all sizes rounded up to powers of two, so that few different shapes occur.

        Examples:
            >>> TreeShape(12, ((3, 5), (1, 3)), ((2, 16),)).rounded()
            TreeShape(length=16, children=((4, 8), (1, 4)), query_tiles=((2, 16),))
        """

        def up(sizes: Sizes) -> Sizes:
            return tuple((power_of_two(a), power_of_two(b)) for a, b in sizes)

        tiles = None if self.query_tiles is None else up(self.query_tiles)
        return TreeShape(power_of_two(self.length), up(self.children), tiles)

    def _raised(self, height: int) -> "TreeShape":
        more = height - len(self.children)
        children, tiles = (*self.children, *[(1, 1)] * more), self.query_tiles
        if tiles is not None:
            width = tile_width(self.length, 1, self.length)
            tiles = (*tiles, *[(-(-self.length // width), width)] * more)
        return TreeShape(self.length, children, tiles)


def _largest(sizes: list[Sizes]) -> Sizes:
    return tuple((max(a for a, _ in level), max(b for _, b in level)) for level in zip(*sizes, strict=True))


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()


def tile_width(tokens: int, nodes: int, length: int) -> int:
    """R: about the mean number of tokens under a node, so that the tiles of all nodes together hold O(T) slots."""
    mean = -(-tokens // nodes)
    return min(max(power_of_two(mean), 8), 128, -(-length // 8) * 8)


def count_tiles(tokens: np.ndarray, width: int) -> np.ndarray:
    """The number of tiles of each node, from the number of tokens under it."""
    return -(-tokens // width)


def natural_shape(outline: Outline) -> TreeShape:
    """The shape without padding."""
    children = tuple((len(level), int(level.max())) for level in outline.sizes)
    if not outline.is_ordered:
        return TreeShape(outline.length, children, None)
    tiles, under = [], outline.sizes[0]
    for sizes in outline.sizes[1:]:
        under = np.add.reduceat(under, np.cumsum(sizes) - sizes)
        width = tile_width(len(outline.tokens), len(sizes), outline.length)
        tiles.append((int(count_tiles(under, width).sum()), width))
    return TreeShape(outline.length, children, tuple(tiles))
