"""A tree as a pytree: structure, compilation, batches; its text and its plot."""

import dataclasses
import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.core.pytree import register
from jaxattn.tree import Tree, TreeShape
from tests.tree.nested import random_nested, same


def test_one_compilation_for_one_shape():
    @jax.jit
    @chex.assert_max_traces(n=2)  # one for the first two trees, one for the padded ones
    def last(tree):
        return jnp.asarray(tree.children[0]).max(axis=1)

    trees = [Tree.from_lengths(lengths) for lengths in ([[3, 5], [4]], [[5, 2], [5]])]
    assert [last(tree).tolist() for tree in trees] == [[2, 7, 11], [4, 6, 11]]
    # Padded to a common shape, trees of other lengths share a program too.
    others = [Tree.from_lengths(lengths) for lengths in ([[3, 5], [4]], [[2, 2], [6, 1]], [4, 5, 6])]
    shape = TreeShape.union(tree.shape for tree in others).rounded()
    for tree in others:
        last(tree.pad(shape))


def test_vmap_over_a_batch():
    rng = np.random.default_rng(0)
    trees = [Tree.from_nested(random_nested(rng, length)) for length in (1, 7, 12, 30)]
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
