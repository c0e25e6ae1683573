"""Trees from lengths, grids, character spans and other trees, and what cannot become a tree."""

import sys
from typing import Any

import jax
import numpy as np
import pytest

from jaxattn.tree import Tree, TreeShape
from tests.tree.nested import (
    check_tables,
    evened,
    height,
    leaves,
    nodes_at,
    random_nested,
    same,
    shifted,
    wrapped,
)


@pytest.mark.parametrize("branching", [2, 3, 7, (5, 2), (64, 16), np.int64(4)])
def test_uniform_trees(branching):
    for length in (1, 2, 7, 8, 9, 64, 100):
        tree = Tree.uniform(length, branching)
        assert jax.tree.leaves(tree) == [] and tree.is_uniform and tree.is_ordered and not tree.is_batched
        given = [int(branching)] if not isinstance(branching, tuple) else branching
        nodes = list(range(length))
        for level, width in enumerate(tree.branching):
            assert width == min(given[min(level, len(given) - 1)], len(nodes))
            nodes = [nodes[i : i + width] for i in range(0, len(nodes), width)]
        assert len(nodes) == 1
        ragged = tree.to_ragged()
        assert not ragged.is_uniform and ragged.to_ragged() is ragged
        check_tables(ragged, nodes[0])
        assert ragged.to_nested() == tree.to_nested() == nodes[0]
        assert (ragged.branching, ragged.shape) == (tree.branching, tree.shape)
        assert ragged.num_nodes == tree.num_nodes
        assert same(tree.pad(tree.shape), ragged)


def test_lengths_are_nested_lists():
    def counts(nested):
        return len(nested) if isinstance(nested[0], int) else [counts(item) for item in nested]

    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = [rng.integers(1, 6, rng.integers(1, 5)).tolist() for _ in range(rng.integers(1, 5))]
        tree = Tree.from_lengths(lengths)
        assert counts(tree.to_nested()) == lengths
        assert leaves(tree.to_nested()) == list(range(sum(map(sum, lengths))))
        assert Tree.from_lengths(lengths, tree.length + 3).length == tree.length + 3


def test_lengths_of_mixed_depth():
    assert Tree.from_lengths([2, [1, 2]]).to_nested() == [[[0], [1]], [[2], [3, 4]]]
    assert Tree.from_lengths((3, 1)).height == 2
    assert Tree.from_lengths(np.array([[1, 2], [2, 1]])).to_nested() == [[[0], [1, 2]], [[3, 4], [5]]]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (3, 5), (8, 3), (7, 7)])
@pytest.mark.parametrize("branching", [2, 3])
def test_grid(size, branching):
    rows, columns = size
    tree = Tree.grid(rows, columns, branching)
    nested = tree.to_nested()
    check_tables(tree, nested)
    assert branching ** (tree.height - 1) < max(2, *size) <= max(2, branching**tree.height)
    for level in range(1, tree.height + 1):
        side = branching**level
        blocks: dict = {}
        for y in range(rows):
            for x in range(columns):
                blocks.setdefault((y // side, x // side), set()).add(y * columns + x)
        found = [frozenset(leaves(node)) for node in nodes_at(nested, tree.height - level)]
        assert len(found) == len(blocks) and set(found) == {frozenset(b) for b in blocks.values()}
    # Blocks as wide as the image follow each other in sequence order.
    assert tree.is_ordered == (columns <= branching)
    assert Tree.grid(1, 9).is_ordered


@pytest.mark.parametrize("ordered", [True, False])
def test_join(ordered):
    rng = np.random.default_rng(0)
    for _ in range(10):
        nested = [random_nested(rng, rng.integers(1, 41), ordered) for _ in range(3)]
        trees = [Tree.from_nested(n) for n in nested]
        joined = Tree.join([*trees, Tree.uniform(5, 2)])
        every = [*nested, [[[0, 1], [2, 3]], [[4]]]]
        levels, wanted, length = max(map(height, every)), [], 0
        for n in every:
            wanted.append(shifted(wrapped(evened(n, height(n)), levels), length))
            length += len(leaves(n))
        assert joined.to_nested() == wanted
        check_tables(joined, wanted)
        assert joined.is_ordered == all(tree.is_ordered for tree in trees)


def test_join_keeps_padding():
    joined = Tree.join([Tree.from_lengths([2], 3), Tree.from_lengths([1])])
    assert joined.to_nested() == [[[0, 1]], [[3]]] and joined.length == 4 and joined.is_ordered
    assert [a.tolist() for a in joined.tile_inverse] == [[0, 1, -1, 8], [0, 1, -1, 2]]


# "One two. Three.  Four" with special tokens at both ends; the space after a word is a token of its own.
TEXT = [(0, 0), (0, 3), (4, 7), (7, 8), (9, 14), (14, 15), (15, 16), (17, 21), (21, 21)]


@pytest.mark.parametrize(
    ("spans", "nested"),
    [
        ([], [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ([[(0, 8), (9, 15), (17, 21)]], [[0], [1, 2, 3], [4, 5, 6], [7], [8]]),
        # Text in front of the first span and between two.
        ([[(9, 15)]], [[0], [1, 2, 3, 4, 5, 6, 7], [8]]),
        (
            [[(0, 15), (17, 21)], [(0, 8), (9, 15), (17, 21)]],
            [[[0]], [[1, 2, 3], [4, 5, 6]], [[7]], [[8]]],
        ),
        # No sentence in the second paragraph, and one that begins late in the first.
        ([[(0, 15), (17, 21)], [(4, 8), (9, 15)]], [[[0]], [[1, 2, 3], [4, 5, 6]], [[7]], [[8]]]),
        # A sentence may reach into the space between two paragraphs.
        ([[(0, 8), (9, 15)], [(0, 9), (9, 21)]], [[[0]], [[1, 2, 3]], [[4, 5, 6, 7]], [[8]]]),
    ],
)
def test_offsets(spans, nested):
    tree = Tree.from_offsets(TEXT, spans, 12)
    assert tree.to_nested() == nested and tree.length == 12 and tree.is_ordered
    assert same(tree, Tree.from_nested(nested, 12))
    assert same(tree, Tree.from_offsets(np.array(TEXT), spans, 12))


def test_special_token_splits_a_span():
    offsets = [(0, 1), (1, 1), (1, 2), (2, 3)]
    assert Tree.from_offsets(offsets, [[(0, 3)]]).to_nested() == [[0], [1], [2, 3]]


def test_deep_lists():
    depth = 3 * sys.getrecursionlimit()
    nested: Any = [0, 1]
    for _ in range(depth):
        nested = [nested]
    tree = Tree.from_nested(nested)
    assert tree.height == depth + 1 and tree.length == 2
    assert len(tree.describe().splitlines()) == tree.height + 1
    comb: Any = 0
    for i in range(1, 300):
        comb = [comb, i]
    tree = Tree.from_nested(comb)
    assert tree.height == 299 and [int((table >= 0).sum()) for table in tree.children[-3:]] == [4, 3, 2]


ERRORS = [
    (lambda: Tree.from_nested([[0, 1], []]), r"nested must not .* node \[1\] is empty"),
    (lambda: Tree.from_nested([[0], [[]]]), r"node \[1\]\[0\] is empty"),
    (lambda: Tree.from_nested([]), "nested .* the root is empty"),
    (lambda: Tree.from_nested([[0, 3], [1, 2], 3]), r"leaf 3 occurs twice, at \[0\]\[1\] and \[2\]"),
    (lambda: Tree.from_nested([0, 0, [0]]), r"leaf 0 occurs 3 times, at \[0\], \[1\] and \[2\]\[0\]"),
    (lambda: Tree.from_nested([[0, 1], [3, 5, 10**15]]), "leaf 2 is missing"),
    (lambda: Tree.from_nested([0, [1, -1]]), r"leaf -1 at \[1\]\[1\] is negative"),
    (lambda: Tree.from_nested([0, ["a"]]), r"nested .* item at \[1\]\[0\] is 'a'"),
    (lambda: Tree.from_nested([0, True]), r"item at \[1\] is True"),
    (lambda: Tree.from_nested(3), "nested must be a list .* got 3"),
    (lambda: Tree.from_nested([0, 1, 2], 2), "length must be at least 3.* got 2"),
    (lambda: Tree.from_lengths([[3, 5], [4, 0]]), r"lengths must be positive; the one at \[1\]\[1\] is 0"),
    (lambda: Tree.from_lengths([3, []]), r"lengths .* node \[1\] is empty"),
    (lambda: Tree.uniform(0, 2), "length must be an integer >= 1; got 0"),
    (lambda: Tree.uniform(8, 1), r"branching\[0\] must be an integer >= 2; got 1"),
    (lambda: Tree.uniform(8, (4, 2.5)), r"branching\[1\] must be an integer >= 2; got 2.5"),
    (lambda: Tree.uniform(8, ()), "branching must be .* got none"),
    (lambda: Tree.grid(0, 3), "height must be an integer >= 1; got 0"),
    (lambda: Tree.grid(2, 3, 1), "branching must be an integer >= 2; got 1"),
    (lambda: Tree.join([]), "trees must hold at least one Tree; got none"),
    (lambda: Tree.stack([]), "trees must hold at least one Tree; got none"),
    (lambda: TreeShape.union([]), "shapes must hold at least one TreeShape; got none"),
    (lambda: Tree.stack([Tree.uniform(4, 2)] * 3).to_nested(), "tree must be unbatched; got a batch of 3"),
    (lambda: Tree.uniform(4, 2).describe(["a"]), "tokens must have at least 4 items.* got 1"),
]


@pytest.mark.parametrize(("build", "message"), ERRORS)
def test_errors(build, message, no_typecheck):
    with pytest.raises(ValueError, match=message):
        build()


OFFSET_ERRORS = [
    (
        [[(0, 8), (9, 15)], [(0, 3), (4, 14)]],
        r"spans\[1\]\[1\] = \(4, 14\) starts in spans\[0\]\[0\] and ends in",
    ),
    (
        [[(0, 8), (9, 15)], [(0, 8)], [(9, 15)]],
        r"spans\[2\]\[0\] = \(9, 15\) starts in no span of spans\[1\]",
    ),
    ([[(0, 8), (7, 15)]], r"spans\[0\]\[1\] = \(7, 15\) starts before the end of \(0, 8\)"),
    ([[(0, 8), (9, 9)]], r"spans\[0\] .* got \(9, 9\) at \[1\]"),
    ([(0, 8), (9, 15)], r"spans\[0\] must be a list"),
    ([[(0, 1), (2,)]], r"spans\[0\] must be a list"),
    ([[]], r"spans\[0\] must be a list"),
]


@pytest.mark.parametrize(("spans", "message"), OFFSET_ERRORS)
def test_span_errors(spans, message, no_typecheck):
    with pytest.raises(ValueError, match=message):
        Tree.from_offsets(TEXT, spans)


def test_offset_errors(no_typecheck):
    with pytest.raises(ValueError, match=r"offsets\[2\] = \(0, 2\) starts before"):
        Tree.from_offsets([(0, 2), (3, 4), (0, 2)], [[(0, 4)]])
    with pytest.raises(ValueError, match="offsets must be a list"):
        Tree.from_offsets([], [[(0, 4)]])
    with pytest.raises(ValueError, match="length must be at least 9"):
        Tree.from_offsets(TEXT, [], 4)
