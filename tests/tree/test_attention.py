"""Hierarchical attention against its recursion and softmax, at extreme inputs, and what it refuses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.tree.naive as naive
from jaxattn.core.call import check_call
from jaxattn.testing import assert_matches_reference
from jaxattn.tree import (
    Tree,
    TreeShape,
    bidirectional,
    causal,
    hierarchical_attention,
    hierarchical_attention_init_state,
    hierarchical_attention_step,
    hierarchical_energy,
    hierarchical_weights,
)
from jaxattn.tree.arguments import Plan, attend_planned, check_whole
from jaxattn.tree.blocks import Blocks
from tests.reference import naive_attention
from tests.tree.arrays import HEADS, LENGTH, WIDTH, jitted, normal, sibling_biases, tree_arrays
from tests.tree.nested import random_nested

COUNT = 48


@functools.cache
def random_trees():
    """(nested lists, lengths, one stack of all): lengths 1 … 12 in one padded shape, compiled once."""
    rng = np.random.default_rng(0)
    lengths = [1, 2, *rng.integers(2, LENGTH + 1, COUNT - 2)]
    trees = [Tree.from_nested(random_nested(rng, int(n))) for n in lengths]
    return [tree.to_nested() for tree in trees], [tree.length for tree in trees], Tree.stack(trees)


def removed(key_bias):
    """The bias with every fifth key of the first head removed."""
    index = np.arange(key_bias.shape[1])
    return key_bias.at[:, index % 5 == 3, 0].set(-jnp.inf)


def naive_tree(nested, arrays, sibling_bias, *, is_causal, include_self):
    """(out, weights[, φ]) of one tree by NumPy in float64, padded to LENGTH tokens."""
    query, key, value, key_bias = arrays
    form = naive.causal_tree_attention if is_causal else naive.tree_attention
    with np.errstate(invalid="ignore"):
        out, weights, *phi = form(
            *(np.swapaxes(x, 0, 1) for x in (query, key, value)), key_bias.T, nested,
            scale=WIDTH**-0.5, include_self=include_self, sibling_bias=sibling_bias, xp=np,
        )  # fmt: skip
    more = LENGTH - len(query)
    out = np.pad(np.swapaxes(out, 0, 1), [(0, more), (0, 0), (0, 0)])
    return out, np.pad(weights, [(0, 0), (0, more), (0, more)]), *phi


@pytest.mark.parametrize("include_self", [True, False], ids=["self", "published"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.few(1)
def test_random_trees(is_causal, include_self):
    """Ragged, deep, with single-child chains, of one leaf: outputs, weights, energies and gradients.

    All are padded to one shape, with key and sibling biases and removed keys. Gradients are compared in a random
    direction of all arrays at once, with central differences of the recursion, for every fourth tree.
    """
    nesteds, lengths, tree = random_trees()
    *arrays, key_bias = tree_arrays(COUNT)
    arrays = (*arrays, removed(key_bias))
    sibling = sibling_biases(tree)
    options = {"is_causal": is_causal, "include_self": include_self}
    directions = [normal(40 + n, *x.shape) for n, x in enumerate(arrays)]
    cotangent = normal(39, *arrays[0].shape)

    @jax.jit
    def run(*arrays):
        def attend(query, key, value, key_bias):
            return hierarchical_attention(
                query, key, value, tree, key_bias=key_bias, sibling_bias=sibling, **options
            )

        out, vjp = jax.vjp(attend, *arrays)
        query, key, _, key_bias = arrays
        given = {"key_bias": key_bias, "sibling_bias": sibling}
        weights = hierarchical_weights(query, key, tree, **given, **options)
        energy = ()
        if not is_causal:
            energy = (hierarchical_energy(query, key, tree, **given, include_self=include_self),)
        return (out, weights, *energy), vjp(cotangent)

    found, gradients = jax.tree.map(np.asarray, run(*arrays))
    sibling, arrays, directions, cotangent = jax.tree.map(
        lambda x: np.asarray(x, np.float64), (sibling, arrays, directions, cotangent)
    )
    for i, (nested, length) in enumerate(zip(nesteds, lengths, strict=True)):

        def recursion(step, i=i, nested=nested, length=length):
            moved = [(x + step * d)[i, :length] for x, d in zip(arrays, directions, strict=True)]
            return naive_tree(nested, moved, sibling, **options)

        for ours, expected in zip(found, recursion(0.0), strict=True):
            np.testing.assert_allclose(ours[i], expected, rtol=1e-4, atol=1e-5, err_msg=f"{nested}")
        if i % 4 == 0:
            ends = [(cotangent[i] * recursion(step)[0]).sum() for step in (1e-5, -1e-5)]
            kept = [np.isfinite(x[i]) for x in arrays]
            assert all(np.isfinite(g[i][k]).all() for g, k in zip(gradients, kept, strict=True))
            terms = [(g[i] * d[i])[k] for g, d, k in zip(gradients, directions, kept, strict=True)]
            scale = sum(np.abs(t).sum() for t in terms)
            error = sum(t.sum() for t in terms) - (ends[0] - ends[1]) / 2e-5
            assert abs(error) < 1e-5 * scale + 1e-6, nested


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_one_family_is_softmax(is_causal):
    assert_matches_reference(
        jitted(hierarchical_attention, Tree.uniform(LENGTH, LENGTH), is_causal=is_causal),
        functools.partial(naive_attention, is_causal=is_causal),
        tree_arrays(2, heads=4, kv_heads=2),
        rtol=1e-4,
        atol=2e-5,
    )


@pytest.mark.parametrize("function", [bidirectional.attend, bidirectional.energy, causal.attend_causal])
@pytest.mark.few(1)
def test_blocks_change_nothing(function):
    """As on accelerators, in steps of two subtrees; the last of 13 is not full. A fifth of the tokens is removed."""
    tree = Tree.uniform(50, (2, 2, 3))
    *arrays, key_bias = tree_arrays(2, length=50, heads=4, kv_heads=2)
    call = check_call(*arrays, key_bias=removed(key_bias), is_causal=True)
    call, biases = check_whole(call, tree, sibling_biases(tree, heads=4))

    @functools.partial(jax.jit, static_argnums=0)
    def attend(block, call, biases):
        plan = Plan(function, include_self=True, blocks=Blocks(block))
        out, vjp = jax.vjp(functools.partial(attend_planned, plan, tree), call, biases)
        return out, *vjp(jnp.cos(out))

    chex.assert_trees_all_close(attend(8, call, biases), attend(None, call, biases), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.few(1)
def test_uniform_equals_tables(is_causal):
    """By reshape and by gathers; the last families are not full, the key bias is per head, queries are grouped."""
    tree = Tree.uniform(50, (4, 3))
    arrays = tree_arrays(2, length=50, heads=4, kv_heads=2)
    bias = sibling_biases(tree, heads=4)

    def attend(tree):
        call = jitted(hierarchical_attention, tree, sibling_bias=bias, is_causal=is_causal)
        out, vjp = jax.vjp(call, *arrays)
        return out, *vjp(jnp.cos(out))

    chex.assert_trees_all_close(attend(tree), attend(tree.to_ragged()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "is_causal", "include_self"),
    [
        ("float32", False, True),
        ("float32", True, False),
        ("bfloat16", False, False),
        ("bfloat16", True, True),
    ],
)
@pytest.mark.few(2)
def test_extremes_stay_finite(dtype, is_causal, include_self):
    """Scores up to ±1000, everything removed, one leaf, tokens beyond the tree."""
    nested = [[[0]], [[[1, 2, 3]], 4], [5, [[[6]]], [7]]]
    tree = Tree.stack([Tree.from_nested(nested), Tree.from_nested([0])])
    query, key, value, key_bias = (x.astype(dtype) for x in tree_arrays(2, length=8))
    call = jitted(hierarchical_attention, tree, is_causal=is_causal, include_self=include_self)

    @jax.jit
    def both(*arrays):
        out, vjp = jax.vjp(call, *arrays)
        return out, vjp(jnp.ones_like(out))

    for bias in (key_bias, 1000 * key_bias, removed(key_bias), jnp.full_like(key_bias, -jnp.inf)):
        out, gradients = both(30 * query, 30 * key, value, bias)
        assert out.dtype == dtype
        assert (np.asarray(out[1, 1:], np.float32) == 0).all()
        chex.assert_tree_all_finite((out, gradients))


def test_one_program_for_trees_of_one_shape():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def call(tree, x):
        return hierarchical_attention(x, x, x, tree)

    one, two = Tree.from_lengths([[3, 4], [3]]), Tree.from_lengths([[1, 1, 5], [3]])
    shape = TreeShape.union([one.shape, two.shape])
    x = normal(0, 10, 1, WIDTH)
    outs = [call(tree.pad(shape), x) for tree in (one, two)]
    assert abs(outs[0] - outs[1]).max() > 1e-2
    np.testing.assert_allclose(outs[0], hierarchical_attention(x, x, x, one), rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named(no_typecheck):
    x = normal(0, 1, 6, HEADS, WIDTH)
    tree = Tree.uniform(6, 3)
    cases = [
        ({"tree": "tree"}, r"tree must be a jaxattn\.Tree"),
        ({"tree": Tree.uniform(7, 3)}, r"tree must be over T = 6 tokens; got a tree of length 7"),
        ({"tree": Tree.stack([tree.to_ragged()] * 2)}, r"tree must be one or B = 1 trees; got 2"),
        ({"key": x[:, :5], "value": x[:, :5]}, r"key must have as many tokens"),
        ({"sibling_bias": [None]}, r"sibling_bias must be a list of one array or None a level, 2"),
        ({"sibling_bias": [jnp.zeros((2, 4, 4)), None]}, r"sibling_bias\[0\]"),
        ({"key_bias": jnp.zeros((1, 5, 2))}, "key_bias"),
        ({"tree": Tree.from_nested([[1, 0, 2], [3, 5, 4]]), "is_causal": True}, "unordered tree"),
    ]
    for change, message in cases:
        given = {"query": x, "key": x, "value": x, "tree": tree} | change
        with pytest.raises(ValueError, match=message):
            hierarchical_attention(**given)
    with pytest.raises(ValueError, match="tree must be unbatched"):
        hierarchical_attention(x[0], x[0], x[0], Tree.stack([tree]))
    state = hierarchical_attention_init_state(1, HEADS, WIDTH, tree)
    with pytest.raises(ValueError, match="state must be for"):
        hierarchical_attention_step(state, x, x, x, Tree.uniform(6, 2))
    with pytest.raises(ValueError, match="head_dim must be at least 1"):
        hierarchical_attention_init_state(1, HEADS, 0, tree)
