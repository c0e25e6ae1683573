"""Nested lists of token indices: random ones, their properties, and the tables of a tree checked against them."""

import jax
import numpy as np


def random_nested(rng, length, ordered=True):
    """Random nested lists: leaves beside lists, single-child chains, wide and narrow families."""

    def grow(tokens, depth):
        if depth > 4 or rng.random() < 0.2 or len(tokens) < 2:
            return [grow(tokens, depth + 1)] if rng.random() < 0.2 and depth < 4 else tokens
        count = min(int(rng.integers(1, 6)), len(tokens) - 1)
        cuts = np.sort(rng.choice(len(tokens) - 1, count, replace=False) + 1)
        parts = [part.tolist() for part in np.split(np.array(tokens), cuts)]
        return [p[0] if len(p) == 1 and rng.random() < 0.5 else grow(p, depth + 1) for p in parts]

    return grow((np.arange(length) if ordered else rng.permutation(length)).tolist(), 0)


def leaves(nested):
    return [nested] if isinstance(nested, int) else [t for item in nested for t in leaves(item)]


def height(nested):
    return 0 if isinstance(nested, int) else 1 + max(height(item) for item in nested)


def evened(nested, levels):
    """The same lists with every leaf `levels` deep."""
    if isinstance(nested, int):
        return nested if levels == 0 else [evened(nested, levels - 1)]
    return [evened(item, levels - 1) for item in nested]


def wrapped(nested, levels):
    """The lists with single-child nodes above the root, `levels` high."""
    for _ in range(levels - height(nested)):
        nested = [nested]
    return nested


def shifted(nested, by):
    return nested + by if isinstance(nested, int) else [shifted(item, by) for item in nested]


def nodes_at(nested, depth):
    return [nested] if depth == 0 else [n for item in nested for n in nodes_at(item, depth - 1)]


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def check_tables(tree, nested):
    """Against the nested lists, by loops."""
    even = evened(nested, tree.height)
    assert all(a.dtype == np.int32 for a in jax.tree.leaves(tree))
    assert len(tree.children) == len(tree.inverse) == tree.height
    assert tree.children[-1].shape[0] == 1
    under = {token: {token} for token in leaves(nested)}
    size = tree.length
    for level, (table, inverse) in enumerate(zip(tree.children, tree.inverse, strict=True)):
        assert table.shape[1] == tree.branching[level]
        assert inverse.shape == (size,)
        wanted = [[frozenset(leaves(c)) for c in node] for node in nodes_at(even, tree.height - level - 1)]
        found = [[frozenset(under[int(m)]) for m in row if m >= 0] for row in table]
        assert found[: len(wanted)] == wanted
        assert not any(found[len(wanted) :])
        used = inverse >= 0
        assert np.array_equal(table.ravel()[inverse[used]], np.flatnonzero(used))
        assert used.sum() == (table >= 0).sum()
        assert np.all(np.diff((table < 0).astype(int), axis=1) >= 0), "children come first"
        under = {f: frozenset().union(*children) for f, children in enumerate(found) if children}
        size = len(table)
    if tree.is_ordered:
        _check_tiles(tree, sorted(leaves(nested)))


def _check_tiles(tree, tokens):
    ancestors = np.full((tree.height + 1, tree.length), -1)
    ancestors[0, tokens] = tokens
    for level in range(tree.height):
        parents = tree.inverse[level][ancestors[level, tokens]] // tree.branching[level]
        ancestors[level + 1, tokens] = parents
    fields = (tree.query_tiles, tree.tile_parent, tree.tile_inverse, tree.child_slot)
    assert all(len(field) == tree.height - 1 for field in fields)
    outside = np.setdiff1d(np.arange(tree.length), tokens)
    for level, (tiles, parents, inverse, slots) in enumerate(zip(*fields, strict=True), 1):
        assert sorted(tiles[tiles >= 0]) == tokens
        for row, parent in zip(tiles, parents, strict=True):
            inside = row[row >= 0]
            assert np.array_equal(row[: len(inside)], range(row[0], row[0] + len(inside))), "consecutive"
            assert np.all(ancestors[level + 1, inside] == parent) and (parent >= 0) == (len(inside) > 0)
        assert np.array_equal(tiles.ravel()[inverse[tokens]], tokens)
        children = tree.children[level][ancestors[level + 1, tokens], slots[tokens]]
        assert np.array_equal(children, ancestors[level, tokens])
        assert np.all(inverse[outside] == -1) and np.all(slots[outside] == -1)
