"""The tables of a tree say what the nested lists said, at every padding."""

import jax
import numpy as np
import pytest

from jaxattn.tree import Tree, TreeShape
from tests.tree.nested import check_tables, evened, height, leaves, nodes_at, random_nested, same, wrapped


def random(seed, ordered=True):
    rng = np.random.default_rng(seed)
    return random_nested(rng, rng.integers(1, 41), ordered)


def test_tables_of_random_trees():
    for seed in range(120):
        nested = random(seed, ordered=seed % 3 > 0)
        spare = seed % 4
        tree = Tree.from_nested(nested, len(leaves(nested)) + spare if spare else None)
        check_tables(tree, nested)
        assert tree.is_ordered == (leaves(nested) == sorted(leaves(nested)))
        assert (tree.length, tree.height) == (len(leaves(nested)) + spare, height(nested))
        assert tree.to_nested() == evened(nested, tree.height)
        assert same(Tree.from_nested(tree.to_nested(), tree.length), tree)
        nodes = sum(len(nodes_at(tree.to_nested(), depth)) for depth in range(tree.height + 1))
        assert tree.num_nodes == nodes + spare
        assert tree.shape.children == tuple(table.shape for table in tree.children)


@pytest.mark.parametrize("seed", range(20))
def test_padding_and_stacking_change_no_tree(seed):
    nested = [random(1000 * seed + i, ordered=seed % 2 > 0) for i in range(4)]
    trees = [Tree.from_nested(n) for n in nested]
    union = TreeShape.union(tree.shape for tree in trees)
    for shape in (union, union.rounded()):
        batch = Tree.stack(trees, shape)
        assert batch.is_batched and batch.shape == shape and batch.height == len(shape.children)
        assert batch.is_ordered == all(tree.is_ordered for tree in trees)
        for i, n in enumerate(nested):
            one = jax.tree.map(lambda a, i=i: a[i], batch)
            assert not one.is_batched and one.shape == shape
            check_tables(one, wrapped(n, batch.height))
            assert one.to_nested() == wrapped(evened(n, height(n)), batch.height)
    small, large = Tree.stack(trees).shape, Tree.stack(trees, union.rounded()).shape
    for tree in trees:
        again = tree.pad(small).pad(large)
        assert same(again, tree.pad(large))
        # Padding counts for nothing: line by line the levels are those of the tree.
        bare = Tree.from_nested(wrapped(tree.to_nested(), again.height))
        assert again.describe().splitlines()[1:] == bare.describe().splitlines()[1:]
    assert same(Tree.stack(trees), Tree.stack(trees, union))


def test_common_shapes():
    low, high = Tree.from_lengths([2] * 30), Tree.from_lengths([[1] * 9, [4, 200]])
    shape = TreeShape.union([low.shape, high.shape])
    assert shape.length == 213 and shape.children == ((30, 200), (2, 30), (1, 2))
    # The tiles are as wide as the wider of both, so the other tree needs fewer.
    assert low.shape.query_tiles == ((1, 64),) and high.shape.query_tiles == ((3, 128), (2, 128))
    assert shape.query_tiles == ((3, 128), (2, 128))
    check_tables(low.pad(shape), [evened(low.to_nested(), 2)])
    assert hash(shape) == hash(TreeShape.union([high.shape, low.shape]))
    assert shape.rounded() == TreeShape(256, ((32, 256), (2, 32), (1, 2)), ((4, 128), (2, 128)))
    # Above the root of a lower tree, the tiles hold all of its tokens.
    long, small = Tree.from_lengths([300]), Tree.from_lengths([[[1]]])
    higher = TreeShape.union([long.shape, small.shape])
    assert higher.query_tiles == ((3, 128), (3, 128), (3, 128))
    check_tables(long.pad(higher), [[[list(range(300))]]])
    unordered = Tree.grid(3, 3)
    assert TreeShape.union([shape, unordered.shape]).query_tiles is None
    batch = Tree.stack([low, unordered])
    assert not batch.is_ordered and batch.query_tiles == () and batch.child_slot == ()
    # The query tiles of a shape are dropped for a batch that cannot have them.
    assert not Tree.stack([low, unordered], shape).is_ordered


def test_tiles_cost_order_of_length():
    for lengths in ([1] * 4000, [4000] + [1] * 100, [[1] * 50, [3000], [1, 1]], [[[7]] * 300]):
        tree = Tree.from_lengths(lengths)
        for level, tiles in enumerate(tree.query_tiles, 1):
            count = len(tree.children[level])
            mean = -(-tree.length // count)
            assert tiles.shape[1] == min(max(1 << (mean - 1).bit_length(), 8), 128)
            assert tiles.size <= 3 * tree.length + 8 * count


def test_tiles_are_not_wider_than_the_sequence():
    assert Tree.from_lengths([10, 9]).query_tiles[0].shape == (1, 24)
    assert Tree.from_lengths([2, 1]).query_tiles[0].shape == (1, 8)


def test_padding_errors():
    tree = Tree.from_lengths([[3, 5], [4]])
    length, children, tiles = tree.shape
    low, small = ((3, 4), *children[1:]), (children[0], (1, 2), (1, 2))
    bad = [
        ((length - 1, children, tiles), "shape.length must be at least 12.* got 11"),
        ((length, children[1:], tiles), "at least 3 levels.* got 2"),
        ((length, low, tiles), r"children\[0\] = \(3, 4\) is too small: level 0 .* up to 5"),
        ((length, small, tiles), r"shape.children\[1\] = \(1, 2\) is too small: level 1"),
        ((length, (*children[:2], (2, 2)), tiles), r"shape.children\[-1\] must be \(1, b\)"),
        ((length, children, tiles[1:]), "shape.query_tiles must have 2 entries, one fewer"),
        (
            (length, children, ((1, 8), (1, 16))),
            r"query_tiles\[0\] = \(1, 8\) is too small: .* 2 tiles .* level 1",
        ),
        ((length, children, ((2, 8), (1, 8))), r"shape.query_tiles\[1\] = \(1, 8\) is too small"),
    ]
    for shape, message in bad:
        with pytest.raises(ValueError, match=message):
            tree.pad(TreeShape(*shape))
    with pytest.raises(ValueError, match=r"shape\.query_tiles must be None"):
        Tree.from_nested([[1, 0]]).pad(TreeShape(2, ((1, 2), (1, 1)), ((1, 8),)))
