"""The tree over tokens: its tables say what the nested lists said, at every padding."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.core.pytree import register
from jaxattn.tree.tree import Tree, TreeShape

SEEDS = range(120)


def random_nested(seed, ordered=True):
    """Random nested lists over 1 to 40 tokens: leaves beside lists, single-child chains, wide and narrow families."""
    rng = np.random.default_rng(seed)

    def grow(tokens, depth):
        if depth > 5 or rng.random() < 0.2 or len(tokens) < 2:
            return [grow(tokens, depth + 1)] if rng.random() < 0.2 and depth < 5 else list(tokens)
        cuts = np.sort(
            rng.choice(len(tokens) - 1, min(rng.integers(1, 6), len(tokens) - 1), replace=False) + 1
        )
        parts = [p.tolist() for p in np.split(np.array(tokens), cuts)]
        return [p[0] if len(p) == 1 and rng.random() < 0.5 else grow(p, depth + 1) for p in parts]

    tokens = np.arange(rng.integers(1, 41))
    return grow((tokens if ordered else rng.permutation(tokens)).tolist(), 0)


def leaves(nested):
    return [nested] if isinstance(nested, int) else [t for item in nested for t in leaves(item)]


def height(nested):
    return 0 if isinstance(nested, int) else 1 + max(height(item) for item in nested)


def evened(nested, levels):
    """The same lists with every leaf `levels` deep."""
    if isinstance(nested, int):
        return nested if levels == 0 else [evened(nested, levels - 1)]
    return [evened(item, levels - 1) for item in nested]


def nodes_at(nested, depth):
    return [nested] if depth == 0 else [n for item in nested for n in nodes_at(item, depth - 1)]


def check_tables(tree, nested):
    """Against the nested lists, by loops."""
    even = evened(nested, tree.height)
    assert all(a.dtype == np.int32 for a in jax.tree.leaves(tree))
    assert len(tree.children) == len(tree.inverse) == tree.height
    assert tree.children[-1].shape[0] == 1
    below = {token: {token} for token in leaves(nested)}
    under = dict(below)
    size = tree.length
    for l, (table, places) in enumerate(zip(tree.children, tree.inverse, strict=True)):
        assert table.shape[1] == tree.branching[l]
        assert places.shape == (size,)
        wanted = [[frozenset(leaves(c)) for c in node] for node in nodes_at(even, tree.height - l - 1)]
        found = [[frozenset(under[int(m)]) for m in row if m >= 0] for row in table]
        assert found[: len(wanted)] == wanted
        assert not any(found[len(wanted) :])
        used = places >= 0
        assert np.array_equal(table.ravel()[places[used]], np.flatnonzero(used))
        assert used.sum() == (table >= 0).sum()
        for row in table:
            assert np.all(np.diff((row < 0).astype(int)) >= 0), "children come first"
        under = {f: frozenset().union(*children) for f, children in enumerate(found) if children}
        size = len(table)
    if tree.is_ordered:
        check_tiles(tree, sorted(below))


def check_tiles(tree, tokens):
    ancestors = np.full((tree.height + 1, tree.length), -1)
    ancestors[0, tokens] = tokens
    for l in range(tree.height):
        ancestors[l + 1, tokens] = tree.inverse[l][ancestors[l, tokens]] // tree.branching[l]
    fields = (tree.query_tiles, tree.tile_parent, tree.tile_inverse, tree.child_slot)
    assert all(len(field) == tree.height - 1 for field in fields)
    for l, (rows, nodes, places, slots) in enumerate(zip(*fields, strict=True), 1):
        assert sorted(rows[rows >= 0]) == tokens
        for row, node in zip(rows, nodes, strict=True):
            inside = row[row >= 0]
            assert np.array_equal(
                row[: len(inside)], np.arange(inside[0], inside[0] + len(inside)) if len(inside) else []
            )
            assert np.all(ancestors[l + 1, inside] == node) and (node >= 0) == (len(inside) > 0)
        assert np.array_equal(rows.ravel()[places[tokens]], tokens)
        assert np.array_equal(tree.children[l][ancestors[l + 1, tokens], slots[tokens]], ancestors[l, tokens])
        outside = np.setdiff1d(np.arange(tree.length), tokens)
        assert np.all(places[outside] == -1) and np.all(slots[outside] == -1)


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def wrapped(nested, levels):
    """The lists with single-child nodes above the root, `levels` high."""
    for _ in range(levels - height(nested)):
        nested = [nested]
    return nested


def shifted(nested, by):
    return nested + by if isinstance(nested, int) else [shifted(item, by) for item in nested]


@pytest.mark.parametrize("seed", SEEDS)
def test_tables_of_random_trees(seed):
    nested = random_nested(seed, ordered=seed % 3 > 0)
    spare = seed % 4
    tree = Tree.from_nested(nested, len(leaves(nested)) + spare if spare else None)
    check_tables(tree, nested)
    assert tree.is_ordered == (leaves(nested) == sorted(leaves(nested)))
    assert (tree.length, tree.height) == (len(leaves(nested)) + spare, height(nested))
    assert tree.to_nested() == evened(nested, tree.height)
    assert same(Tree.from_nested(tree.to_nested(), tree.length), tree)
    assert tree.num_nodes == sum(len(nodes_at(tree.to_nested(), d)) for d in range(tree.height + 1)) + spare
    assert tree.shape.children == tuple(table.shape for table in tree.children)


@pytest.mark.parametrize("seed", SEEDS[::3])
def test_padding_and_stacking_change_no_tree(seed):
    nested = [random_nested(1000 * seed + i, ordered=seed % 2 > 0) for i in range(4)]
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
    # The tiles are as wide as the wider of both, which makes those of the other fewer.
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
    # A shape with tiles is no obstacle to a batch that cannot have them.
    assert not Tree.stack([low, unordered], shape).is_ordered


@pytest.mark.parametrize(
    "lengths", [[1] * 4000, [4000] + [1] * 100, [[1] * 50, [3000], [1, 1]], [[[7]] * 300]]
)
def test_tiles_cost_order_of_length(lengths):
    tree = Tree.from_lengths(lengths)
    for l, rows in enumerate(tree.query_tiles, 1):
        count = len(tree.children[l])
        mean = -(-tree.length // count)
        assert rows.shape[1] == min(max(1 << (mean - 1).bit_length(), 8), 128)
        assert rows.size <= 3 * tree.length + 8 * count


def test_tiles_are_not_wider_than_the_sequence():
    assert Tree.from_lengths([10, 9]).query_tiles[0].shape == (1, 24)
    assert Tree.from_lengths([2, 1]).query_tiles[0].shape == (1, 8)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 64, 100])
@pytest.mark.parametrize("branching", [2, 3, 7, (5, 2), (64, 16), np.int64(4)])
def test_uniform_trees(length, branching):
    tree = Tree.uniform(length, branching)
    assert jax.tree.leaves(tree) == [] and tree.is_uniform and tree.is_ordered and not tree.is_batched
    given = [int(branching)] if not isinstance(branching, tuple) else branching
    nodes = list(range(length))
    for l, width in enumerate(tree.branching):
        assert width == min(given[min(l, len(given) - 1)], len(nodes))
        nodes = [nodes[i : i + width] for i in range(0, len(nodes), width)]
    assert len(nodes) == 1
    ragged = tree.to_ragged()
    assert not ragged.is_uniform and ragged.to_ragged() is ragged
    check_tables(ragged, nodes[0])
    assert ragged.to_nested() == tree.to_nested() == nodes[0]
    assert (ragged.branching, ragged.shape, ragged.num_nodes) == (tree.branching, tree.shape, tree.num_nodes)
    assert same(tree.pad(tree.shape), ragged)


@pytest.mark.parametrize("seed", SEEDS[:20])
def test_lengths_are_nested_lists(seed):
    def counts(nested):
        return len(nested) if isinstance(nested[0], int) else [counts(item) for item in nested]

    rng = np.random.default_rng(seed)
    lengths = [[int(n) for n in rng.integers(1, 6, rng.integers(1, 5))] for _ in range(rng.integers(1, 5))]
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
    # Blocks as wide as the image follow each other in the order of the sequence.
    assert tree.is_ordered == (columns <= branching)
    assert Tree.grid(1, 9).is_ordered


@pytest.mark.parametrize("seed", SEEDS[:20])
def test_join(seed):
    nested = [random_nested(500 * seed + i, ordered=seed % 2 > 0) for i in range(3)]
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


# "One two. Three.  Four" with special tokens at both ends; the space after a word is its token's own.
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


def test_special_token_cuts_a_span():
    offsets = [(0, 1), (1, 1), (1, 2), (2, 3)]
    assert Tree.from_offsets(offsets, [[(0, 3)]]).to_nested() == [[0], [1], [2, 3]]


def test_deep_lists_are_no_problem():
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


def test_one_compilation_for_one_shape():
    traces = []

    @jax.jit
    def last(tree):
        traces.append(tree.num_nodes)
        return jnp.asarray(tree.children[0]).max(axis=1)

    trees = [Tree.from_lengths(lengths) for lengths in ([[3, 5], [4]], [[5, 2], [5]])]
    assert [last(tree).tolist() for tree in trees] == [[2, 7, 11], [4, 6, 11]]
    assert traces == [12 + 3 + 2 + 1]
    # Padded to a common shape, trees of other lengths do too.
    others = [Tree.from_lengths(lengths) for lengths in ([[3, 5], [4]], [[2, 2], [6, 1]], [4, 5, 6])]
    shape = TreeShape.union(tree.shape for tree in others).rounded()
    for tree in others:
        last(tree.pad(shape))
    assert len(traces) == 2


def test_vmap_over_a_batch():
    trees = [Tree.from_nested(random_nested(seed)) for seed in range(5)]
    batch = Tree.stack(trees)

    def summary(tree):
        assert not tree.is_batched
        return jax.tree.map(jnp.sum, tree)

    found = jax.vmap(summary)(batch)
    for i, tree in enumerate(trees):
        one = summary(tree.pad(batch.shape))
        assert same(jax.tree.map(lambda a, i=i: a[i], found), one)


def test_structures():
    four, two = Tree.uniform(16, 4), Tree.uniform(16, 2)
    assert jax.tree.structure(four) != jax.tree.structure(two)
    assert jax.tree.structure(four) == jax.tree.structure(Tree.uniform(16, (4, 4)))
    tree = Tree.from_lengths([3, 5])
    # Transformations put placeholders into the fields, and arrays of the device come back out of them.
    holes = jax.tree.map(lambda _: object(), tree)
    assert repr(holes) == repr(tree) == "Tree(length=8, branching=(5, 2), ragged, ordered)"
    assert jax.tree.map(jnp.asarray, tree).to_nested() == tree.to_nested()
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
    assert ".children[1]" in names and ".child_slot[0]" in names


def test_register_takes_static_fields():
    @register
    @dataclasses.dataclass(frozen=True)
    class Pair:
        sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
        array: Any

    pair = jax.jit(lambda p: jax.tree.map(lambda a: a + len(p.sizes), p))(Pair((1, 2), jnp.zeros(2)))
    assert pair.sizes == (1, 2) and pair.array.tolist() == [2, 2]
    assert jax.tree.structure(pair) != jax.tree.structure(Pair((1, 3), 0))


def test_describe():
    tree = Tree.from_nested([0, [1, 2], [[3, 4, 5]]], 8)
    assert tree.describe(["a", "b", "c", "d", 5, "\n"]).splitlines() == [
        "6 of 8 tokens in a tree of height 3, ordered",
        "level 2: 3 nodes in 1 family of 3",
        "level 1: 4 nodes in 3 families of 1 to 2, 1.33 on average",
        "level 0: 6 nodes in 4 families of 1 to 3, 1.5 on average",
        "",
        "•",
        "  • • a",
        "  •",
        "    • b",
        "    • c",
        "  • • d 5 \\n",
    ]
    large = Tree.uniform(65, 8).describe().splitlines()
    assert len(large) == 4 and large[-1] == "level 0: 65 nodes in 9 families of 1 to 8, 7.22 on average"
    assert "not ordered" in Tree.grid(3, 3).describe()


def test_plot(monkeypatch):
    pytest.importorskip("matplotlib")
    axes = Tree.from_lengths([3, 2]).plot(["The", "cat", "sat", ".", "Yes"])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["The", "cat", "sat", ".", "Yes"]
    points = [p.get_offsets().tolist() for p in axes.collections[1:]]
    assert points[1:] == [[[1, 1], [3.5, 1]], [[2.25, 2]]]
    assert Tree.uniform(300, 4).plot(ax=axes) is axes
    axes.figure.canvas.draw()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxattn\[train\]"):
        Tree.uniform(4, 2).plot()
