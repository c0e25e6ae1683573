"""A tree over the tokens of a sequence, as index arrays of fixed shapes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxattn.core.pytree import register
from jaxattn.tree.builders import drawing
from jaxattn.tree.builders.grid import grid_outline
from jaxattn.tree.builders.nested import lengths_outline, nested_outline, to_nested
from jaxattn.tree.builders.outline import Outline, joined, uniform_branching, uniform_outline
from jaxattn.tree.builders.spans import offsets_outline
from jaxattn.tree.shape import TreeShape, natural_shape
from jaxattn.tree.tables import build_tables, fit, read_outline


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """A tree over the tokens of a sequence; a pytree, made by the class methods below.

    All leaves are at level 0, the root is at level L; leaves that are given higher up are put below single-child
    nodes. A family is the children of one node. Trees whose tables have the same sizes share compiled code: see
    `pad` and `stack`. The tables are int32 and made on the host; −1 marks an empty entry.

    Attributes:
        length: T, the number of token slots; tokens that are in no family are padding.
        branching: (b_0 … b_{L−1}), the largest number of children of a node, from the leaves up.
        is_uniform: whether there are no tables: node f of level l + 1 has the children f b_l … f b_l + b_l − 1.
        is_ordered: whether the leaves are in sequence order, which causal attention needs.
        children: (F_l, b_l) a level: `children[l][f, c]` is the index at level l of child c of node f of level l + 1.
        inverse: (M_l,) a level, the inverse: the flat index f b_l + c in children[l] of every node of level l.
        query_tiles: ordered trees only, (P_l, R_l) for l = 1 … L − 1: tiles of tokens, those of a tile all below one
            node of level l + 1.
        tile_parent: (P_l,) the index of that node.
        tile_inverse: (T,) the flat index of every token in query_tiles.
        child_slot: (T,) the slot in children[l] of the ancestor of every token at level l.

    Examples:
        >>> tree = Tree.from_nested([[0, 1, 2], [3, 4]])
        >>> tree
        Tree(length=5, branching=(3, 2), ragged, ordered)
        >>> tree.children[0].tolist()
        [[0, 1, 2], [3, 4, -1]]

    Reference: arXiv 2509.15448, "Hierarchical self-attention", attends over such trees.
    """

    length: int
    branching: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    is_uniform: bool
    is_ordered: bool
    children: tuple[Any, ...] = ()
    inverse: tuple[Any, ...] = ()
    query_tiles: tuple[Any, ...] = ()
    tile_parent: tuple[Any, ...] = ()
    tile_inverse: tuple[Any, ...] = ()
    child_slot: tuple[Any, ...] = ()

    @classmethod
    def uniform(cls, length: int, branching: int | np.integer | Sequence[int]) -> "Tree":
        """The tree of consecutive families of equal size; the last family of a level has the remaining nodes.

        Args:
            length: T >= 1.
            branching: the size of a family, >= 2, or sizes from the leaves up, of which the last repeats until one
                root remains: (64, 16) is families of 64 tokens, then 16 of these, 16 of those and so on.

        Returns:
            A tree without tables.

        Raises:
            ValueError: the length or a family size is too small.

        Examples:
            >>> Tree.uniform(1000, (64, 4))
            Tree(length=1000, branching=(64, 4, 4), uniform, ordered)
        """
        return cls(int(length), uniform_branching(length, branching), True, True)

    @classmethod
    def from_nested(cls, nested: Sequence[Any] | np.ndarray, length: int | None = None) -> "Tree":
        """The tree of nested lists of token indices.

        Args:
            nested: lists whose items are lists or token indices; every index 0 … n − 1 occurs once, in any order.
            length: T, the number of token slots; n when None.

        Returns:
            A tree with tables.

        Raises:
            ValueError: a list is empty, or an index is missing or repeated; the message says where.

        Examples:
            >>> Tree.from_nested([0, [1, 2], [[3, 4], 5]]).to_nested()
            [[[0]], [[1], [2]], [[3, 4], [5]]]
        """
        return cls._of(nested_outline(nested, length))

    @classmethod
    def from_lengths(cls, lengths: Sequence[Any] | np.ndarray, length: int | None = None) -> "Tree":
        """The tree of consecutive spans of given lengths.

        Args:
            lengths: lists whose items are lists or token counts: [[3, 5], [4]] is a paragraph of two sentences and
                one of a single sentence, [3, 5] is two sentences.
            length: T, the number of token slots; the sum when None.

        Returns:
            A tree with tables.

        Raises:
            ValueError: a list is empty or a length is not positive; the message says where.

        Examples:
            >>> Tree.from_lengths([[3, 1], [2]]).to_nested()
            [[[0, 1, 2], [3]], [[4, 5]]]
        """
        return cls._of(lengths_outline(lengths, length))

    @classmethod
    def from_offsets(
        cls, offsets: Sequence[Any] | np.ndarray, spans: Sequence[Any], length: int | None = None
    ) -> "Tree":
        """The tree of a tokenized text from the character spans of its parts.

        A token belongs to the span in which it starts; between two spans, to the first of them; before all spans, to
        the first. A special token, whose offset is empty, is a child of the root and splits a span it lies in. Tokens
        of a span without finer spans inside form one node at the finer level.

        Args:
            offsets: the (start, end) characters of every token, without padding.
            spans: coarse to fine, such as [paragraphs, sentences]; each a sorted list of disjoint (start, end).
            length: T, the number of token slots; the number of offsets when None.

        Returns:
            An ordered tree with tables and one level more than `spans`.

        Raises:
            ValueError: a span crosses a border of a coarser one, spans overlap or are empty, or offsets decrease.

        Examples:
            >>> offsets = [(0, 0), (0, 2), (2, 3), (4, 8), (0, 0)]
            >>> Tree.from_offsets(offsets, [[(0, 3), (4, 8)]]).to_nested()
            [[0], [1, 2], [3], [4]]
        """
        return cls._of(offsets_outline(offsets, spans, length))

    @classmethod
    def grid(cls, height: int, width: int, branching: int = 2) -> "Tree":
        """The tree of square blocks over the patches of an image, row by row; a quadtree with branching 2.

        Args:
            height: rows of patches.
            width: columns of patches.
            branching: a family is a block of up to branching × branching; smaller at the lower and right edge.

        Returns:
            A tree with tables, unordered unless the image is one row or no wider than a family's block.

        Raises:
            ValueError: a size is too small.

        Examples:
            >>> Tree.grid(2, 4).to_nested()
            [[0, 1, 4, 5], [2, 3, 6, 7]]
        """
        return cls._of(grid_outline(height, width, branching))

    @classmethod
    def join(cls, trees: "Sequence[Tree]") -> "Tree":
        """The tree of several documents or modalities in sequence, as children of a new root.

        Args:
            trees: one or more unbatched trees; lower ones get single-child nodes above their roots. Padding of all
                but the last remains between them.

        Returns:
            A tree with tables over the tokens of all; ordered if all trees are.

        Raises:
            ValueError: there are no trees, or one is a batch.

        Examples:
            >>> Tree.join([Tree.grid(2, 2), Tree.from_lengths([2, 1])]).to_nested()
            [[[0, 1, 2, 3]], [[4, 5], [6]]]
        """
        if not trees:
            raise ValueError("trees must hold at least one Tree; got none.")
        return cls._of(joined([tree._outline() for tree in trees]))

    @classmethod
    def stack(cls, trees: "Sequence[Tree]", shape: TreeShape | None = None) -> "Tree":
        """A batch of trees, padded to a common shape: all arrays get a leading batch axis.

        Args:
            trees: B >= 1 unbatched trees.
            shape: the common shape; the smallest when None.

        Returns:
            A tree with tables (B, F_l, b_l) and so on; ordered if all trees are.

        Raises:
            ValueError: there are no trees, one is a batch, or one does not fit the shape.

        Examples:
            >>> batch = Tree.stack([Tree.from_lengths([3, 5]), Tree.from_lengths([2, 2, 2])])
            >>> batch.children[0].shape, batch.length
            ((2, 3, 5), 8)
        """
        trees = list(trees)
        if not trees:
            raise ValueError("trees must hold at least one Tree; got none.")
        if shape is None:
            shape = TreeShape.union(tree.shape for tree in trees)
        if not all(tree.is_ordered for tree in trees):
            shape = shape._replace(query_tiles=None)
        return jax.tree.map(lambda *arrays: np.stack(arrays), *(tree.pad(shape) for tree in trees))

    def pad(self, shape: TreeShape) -> "Tree":
        """The same tree with tables of the given sizes; a lower one gets single-child nodes above its root.

        Args:
            shape: at least the shape of this tree, as from `TreeShape.union` or `TreeShape.rounded`.

        Returns:
            A tree with tables; the added tokens are padding.

        Raises:
            ValueError: the tree does not fit, or is a batch; the message names the level.

        Examples:
            >>> tree = Tree.from_lengths([3, 5])
            >>> tree.pad(tree.shape.rounded()).branching
            (8, 2)
        """
        return self._of(fit(self._outline(), shape), shape)

    def to_ragged(self) -> "Tree":
        """The same tree with tables; itself if it has them already.

        Examples:
            >>> Tree.uniform(4, 2).to_ragged().children[0].tolist()
            [[0, 1], [2, 3]]
        """
        return self._of(self._outline()) if self.is_uniform else self

    def to_nested(self) -> list[Any]:
        """Nested lists of token indices, all leaves equally deep; the inverse of `from_nested`. Raises for a batch.

        Examples:
            >>> Tree.uniform(5, 2).to_nested()
            [[[0, 1], [2, 3]], [[4]]]
        """
        return to_nested(self._outline())

    def describe(self, tokens: Sequence[Any] | None = None) -> str:
        """A line of text for every level and, for up to 64 leaves, a drawing. Raises for a batch.

        Args:
            tokens: texts to show in place of token indices; at least one a token.

        Examples:
            >>> print(Tree.from_lengths([3, 2]).describe(["So", "it", "is", "Yes", "."]))
            5 tokens in a tree of height 2, ordered
            level 1: 2 nodes in 1 family of 2
            level 0: 5 nodes in 2 families of 2 to 3, 2.5 on average
            <BLANKLINE>
            •
              • So it is
              • Yes .
        """
        return drawing.describe(self._outline(), tokens)

    def plot(self, tokens: Sequence[Any] | None = None, ax: Any = None) -> Any:
        """Draws the tree with matplotlib, the root on top. Raises for a batch.

        Args:
            tokens: texts to show in place of token indices, at least one a token; only shown for up to 64 leaves.
            ax: the matplotlib axes to draw on; new ones when None.

        Returns:
            The axes; `axes.figure.savefig(path)` writes a file.

        Examples:
            >>> Tree.uniform(8, 2).plot(["a", "b", "c", "d", "e", "f", "g", "h"]).get_ylabel()
            'level'
        """
        return drawing.plot(self._outline(), tokens, ax)

    @property
    def height(self) -> int:
        """L, the number of levels above the leaves."""
        return len(self.branching)

    @property
    def num_nodes(self) -> int:
        """Leaves and inner nodes, padding included; of one tree, for a batch."""
        return self.length + sum(parents for parents, _ in self.shape.children)

    @property
    def is_batched(self) -> bool:
        """Whether the tables have a batch axis."""
        return not self.is_uniform and self.children[0].ndim == 3

    @property
    def shape(self) -> TreeShape:
        """The sizes of the tables, or of those that `to_ragged` makes; of one tree, for a batch."""
        if self.is_uniform:
            return natural_shape(self._outline())
        children, tiles = (
            tuple(t.shape[-2:] for t in tables) for tables in (self.children, self.query_tiles)
        )
        return TreeShape(self.length, children, tiles if self.is_ordered else None)

    def __repr__(self) -> str:
        # Without the tables, which may be placeholders.
        kind = "uniform" if self.is_uniform else "ragged"
        order = "ordered" if self.is_ordered else "unordered"
        return f"Tree(length={self.length}, branching={self.branching}, {kind}, {order})"

    def _outline(self) -> Outline:
        if self.is_uniform:
            return uniform_outline(self.length, self.branching)
        if self.is_batched:
            raise ValueError(f"tree must be unbatched; got a batch of {self.children[0].shape[0]}.")
        return read_outline(self.length, self.children)

    @classmethod
    def _of(cls, outline: Outline, shape: TreeShape | None = None) -> "Tree":
        shape = natural_shape(outline) if shape is None else shape
        branching = tuple(width for _, width in shape.children)
        return cls(
            shape.length, branching, False, shape.query_tiles is not None, *build_tables(outline, shape)
        )
