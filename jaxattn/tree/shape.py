"""The sizes of the tables of a tree: trees of one shape share compiled code."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxattn.tree.outline import Outline


class TreeShape(NamedTuple):
    """Sizes of the tables of a tree, to pad trees to; hashable.

    Attributes:
        length: T, the number of token slots.
        families: (F_l, b_l) for every level from the leaves up: families and the size of the largest.
        tiles: (P_l, R_l) for levels 1 … L − 1: tiles of tokens and their width; None for a tree that is not ordered.

    Examples:
        >>> from jaxattn.tree.tree import Tree
        >>> Tree.from_lengths([[3, 5], [4]]).shape
        TreeShape(length=12, families=((3, 5), (2, 2), (1, 2)), tiles=((2, 8), (1, 16)))
    """

    length: int
    families: tuple[tuple[int, int], ...]
    tiles: tuple[tuple[int, int], ...] | None

    @staticmethod
    def union(shapes: "Iterable[TreeShape]") -> "TreeShape":
        """The smallest shape that trees of all the given shapes can be padded to.

        Lower trees get single-child nodes above their roots. There are tiles only if all shapes have them.

        Args:
            shapes: one shape or more.

        Returns:
            The common shape.

        Raises:
            ValueError: there are no shapes.

        Examples:
            >>> from jaxattn.tree.tree import Tree
            >>> one, two = Tree.from_lengths([3, 5]), Tree.from_lengths([2, 2, 2])
            >>> TreeShape.union([one.shape, two.shape]).families
            ((3, 5), (1, 3))
        """
        shapes = list(shapes)
        if not shapes:
            raise ValueError("shapes must hold at least one TreeShape; got none.")
        height = max(len(shape.families) for shape in shapes)
        shapes = [shape._raised(height) for shape in shapes]
        # With wider tiles a tree never needs more of them, so that the largest number is enough for all.
        tiles = [shape.tiles for shape in shapes if shape.tiles is not None]
        return TreeShape(
            max(shape.length for shape in shapes),
            _largest([shape.families for shape in shapes]),
            _largest(tiles) if len(tiles) == len(shapes) else None,
        )

    def rounded(self) -> "TreeShape":
        """The shape with all sizes rounded up to powers of two, so that few different shapes occur.

        Returns:
            A shape that holds everything this one holds.

        Examples:
            >>> TreeShape(12, ((3, 5), (1, 3)), ((2, 16),)).rounded()
            TreeShape(length=16, families=((4, 8), (1, 4)), tiles=((2, 16),))
        """

        def up(sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
            return tuple((power_of_two(a), power_of_two(b)) for a, b in sizes)

        return TreeShape(
            power_of_two(self.length), up(self.families), None if self.tiles is None else up(self.tiles)
        )

    def _raised(self, height: int) -> "TreeShape":
        more = height - len(self.families)
        families = (*self.families, *[(1, 1)] * more)
        if self.tiles is None:
            return self._replace(families=families)
        width = tile_width(self.length, 1, self.length)
        return self._replace(
            families=families, tiles=(*self.tiles, *[(-(-self.length // width), width)] * more)
        )


def _largest(sizes: list[tuple[tuple[int, int], ...]]) -> tuple[tuple[int, int], ...]:
    return tuple((max(a for a, _ in level), max(b for _, b in level)) for level in zip(*sizes, strict=True))


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()


def tile_width(tokens: int, nodes: int, length: int) -> int:
    """R: about the mean number of tokens under a node, so that tiles of all nodes together hold O(T) slots."""
    mean = -(-tokens // nodes)
    return min(max(power_of_two(mean), 8), 128, -(-length // 8) * 8)


def tiles_of(sizes: np.ndarray, width: int) -> np.ndarray:
    """The number of tiles of each node, from the number of tokens under it."""
    return -(-sizes // width)


def natural_shape(outline: Outline) -> TreeShape:
    """The shape without padding."""
    families = tuple((len(level), int(level.max())) for level in outline.sizes)
    if not outline.is_ordered:
        return TreeShape(outline.length, families, None)
    tiles, under = [], outline.sizes[0]
    for sizes in outline.sizes[1:]:
        under = np.add.reduceat(under, np.cumsum(sizes) - sizes)
        width = tile_width(len(outline.tokens), len(sizes), outline.length)
        tiles.append((int(tiles_of(under, width).sum()), width))
    return TreeShape(outline.length, families, tuple(tiles))
