"""Hierarchical attention against its recursion, its theorem, softmax, and itself step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.tree.naive as naive
from jaxattn.testing import assert_causal, assert_matches_reference
from jaxattn.tree.attention import hierarchical_attention, hierarchical_energy, hierarchical_weights
from jaxattn.tree.state import hierarchical_attention_init_state, hierarchical_attention_step
from jaxattn.tree.tree import Tree
from tests.reference import naive_attention

LENGTH, HEADS, WIDTH = 12, 2, 4


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.lru_cache
def random_trees(count=200):
    """(nested lists, one stack of all): lengths 1 … 12 in one padded shape, so that one program serves them all."""
    rng = np.random.default_rng(0)
    lengths = [1, 2, *rng.integers(2, LENGTH + 1, count - 2)]
    trees = [Tree.from_nested(naive.random_nested(rng, int(n))) for n in lengths]
    return [tree.to_nested() for tree in trees], [tree.length for tree in trees], Tree.stack(trees)


def tree_arrays(batch, seed=0, length=LENGTH, heads=HEADS, kv_heads=HEADS):
    return (
        normal(seed, batch, length, heads, WIDTH),
        normal(seed + 1, batch, length, kv_heads, WIDTH),
        normal(seed + 2, batch, length, kv_heads, WIDTH),
        normal(seed + 3, batch, length, heads),
    )


def removed(key_bias):
    """The bias with every fifth key of the first head removed."""
    index = np.arange(key_bias.shape[1])
    return key_bias.at[:, index % 5 == 3, 0].set(-jnp.inf)


@functools.lru_cache
def biases(tree, heads=HEADS):
    return tuple(normal(10 + level, heads, size, size) for level, size in enumerate(tree.branching))


def naive_tree(i, arrays, sibling_bias, *, is_causal, include_self):
    """(out (T, N, H), weights (N, T, T), phi (N,) or None) of tree i, by NumPy in float64; tokens beyond it get 0."""
    nesteds, lengths, _ = random_trees()
    length = lengths[i]
    query, key, value, key_bias = (np.asarray(x[i, :length], np.float64) for x in arrays)
    form = naive.causal_tree_attention if is_causal else naive.tree_attention
    with np.errstate(invalid="ignore"):
        out, weights, *phi = form(
            *(np.swapaxes(x, 0, 1) for x in (query, key, value)), key_bias.T, nesteds[i],
            scale=WIDTH**-0.5, include_self=include_self, sibling_bias=sibling_bias, xp=np,
        )  # fmt: skip
    more = LENGTH - length
    return (
        np.pad(np.swapaxes(out, 0, 1), [(0, more), (0, 0), (0, 0)]),
        np.pad(weights, [(0, 0), (0, more), (0, more)]),
        *phi,
    )


def jitted(function, tree, **options):
    """The kernel as a function of (query, key, value, key_bias), compiled."""
    return jax.jit(
        lambda query, key, value, key_bias: function(query, key, value, tree, key_bias=key_bias, **options)
    )


@pytest.mark.parametrize("include_self", [True, False], ids=["self", "published"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_200_trees(is_causal, include_self):
    """Ragged, deep, with single-child chains, of one leaf: outputs, weights, energies and gradients.

    All are padded to one shape, with key and sibling biases and removed keys. Gradients are compared as derivatives
    in random directions of all arrays at once, which the recursion has by central differences.
    """
    nesteds, _, tree = random_trees()
    count, directions = len(nesteds), 1
    *arrays, key_bias = tree_arrays(count)
    arrays = (*arrays, removed(key_bias))
    sibling = biases(tree)
    exact = [np.asarray(b, np.float64) for b in sibling]
    options = {"is_causal": is_causal, "include_self": include_self}
    moves = [[normal(40 + 10 * d + n, *x.shape) for n, x in enumerate(arrays)] for d in range(directions)]
    cotangent = normal(39, *arrays[0].shape)

    @jax.jit
    def run(*arrays):
        def attend(*arrays):
            query, key, value, key_bias = arrays
            return hierarchical_attention(
                query, key, value, tree, key_bias=key_bias, sibling_bias=sibling, **options
            )

        out, vjp = jax.vjp(attend, *arrays)
        query, key, _, key_bias = arrays
        weights = hierarchical_weights(query, key, tree, key_bias=key_bias, sibling_bias=sibling, **options)
        energy = None
        if not is_causal:
            energy = hierarchical_energy(
                query, key, tree, key_bias=key_bias, sibling_bias=sibling, include_self=include_self
            )
        return out, vjp(cotangent), weights, energy

    out, gradients, weights, energy = run(*arrays)
    step = 1e-5
    for i in range(count):
        plain = naive_tree(i, arrays, exact, **options)
        np.testing.assert_allclose(out[i], plain[0], rtol=1e-4, atol=1e-5, err_msg=f"output, {nesteds[i]}")
        np.testing.assert_allclose(
            weights[i], plain[1], rtol=1e-4, atol=1e-6, err_msg=f"weights, {nesteds[i]}"
        )
        if energy is not None:
            np.testing.assert_allclose(energy[i], plain[2], rtol=1e-4, atol=1e-5, err_msg=f"{nesteds[i]}")
        for move in moves:
            ends = []
            for sign in (1, -1):
                moved = {
                    n: np.asarray(x[i], np.float64) + sign * step * np.asarray(m[i], np.float64)
                    for n, (x, m) in enumerate(zip(arrays, move, strict=True))
                }
                at = [_At(i, moved[n]) for n in range(4)]
                ends.append(
                    (np.asarray(cotangent[i], np.float64) * naive_tree(i, at, exact, **options)[0]).sum()
                )
            expected = (ends[0] - ends[1]) / (2 * step)
            terms = [
                np.where(np.isfinite(moved[n]), g[i] * np.asarray(m[i], np.float64), 0.0)
                for n, (g, m) in enumerate(zip(gradients, move, strict=True))
            ]
            assert all(np.isfinite(t).all() for t in terms)
            scale = sum(np.abs(t).sum() for t in terms)
            assert abs(sum(t.sum() for t in terms) - expected) < 1e-5 * scale + 1e-6, nesteds[i]


class _At:
    """An array of which one member of the batch is given."""

    def __init__(self, index, value):
        self.index, self.value = index, value

    def __getitem__(self, item):
        assert item[0] == self.index
        return self.value[item[1]]


def row_divergence(weights, scores):
    """Σ_i KL(row i of weights || softmax of row i of scores) + Σ log-partition terms are the caller's: (N,)."""
    log_softmax = scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    return jnp.where(
        weights > 0, weights * (jnp.log(jnp.where(weights > 0, weights, 1.0)) - log_softmax), 0.0
    ).sum((-2, -1))


NINE = [[0, 1], [[2, 3, 4], 5], [6, [7, 8]]]


def test_theorem_divergence_is_the_energy():
    """Σ KL(tree || softmax) = T φ + Σ log Z, with a gate on the keys as well."""
    query, key, _, key_bias = tree_arrays(1, length=9)
    tree = Tree.from_nested(NINE)
    weights = jax.jit(hierarchical_weights)(query, key, tree, key_bias=key_bias)
    energy = jax.jit(hierarchical_energy)(query, key, tree, key_bias=key_bias)
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / WIDTH**0.5 + jnp.moveaxis(key_bias, 1, 2)[:, :, None]
    partition = jax.nn.logsumexp(scores, axis=-1).sum(-1)
    np.testing.assert_allclose(row_divergence(weights, scores), 9 * energy + partition, rtol=1e-5)


def test_theorem_no_other_matrix_with_these_blocks_is_closer():
    """Random moves of mass that keep rows normalised and blocks constant only raise the divergence."""
    query, key, *_ = tree_arrays(1, length=9)
    tree = Tree.from_nested(NINE)
    with jax.enable_x64(True):
        query, key = (jnp.asarray(x, jnp.float64) for x in (query, key))
        weights = np.asarray(jax.jit(hierarchical_weights)(query, key, tree))[0, 0]
        scores = np.einsum("btnh,bsnh->bnts", query, key)[0, 0] / WIDTH**0.5
        divergence = jax.jit(row_divergence)
        blocks = []  # every (rows, columns) that share a weight

        def visit(node):
            for i, child in enumerate(node):
                for j, other in enumerate(node):
                    if i != j or isinstance(child, int):
                        blocks.append((naive.leaves(child), naive.leaves(other)))
                if not isinstance(child, int):
                    visit(child)

        visit(tree.to_nested())
        for rows, columns in blocks:
            assert np.ptp(weights[np.ix_(rows, columns)]) < 1e-12
        # Moves of the blocks' weights that keep all nine row sums: the null space of their effect on the rows.
        effect = np.array(
            [[len(columns) * (row in rows) for rows, columns in blocks] for row in range(9)], float
        )
        free = np.linalg.svd(effect)[2][np.linalg.matrix_rank(effect) :]
        assert len(free) > 0
        best = float(divergence(weights, scores))
        rng = np.random.default_rng(0)
        for size in (1e-2, 1e-3):
            for _ in range(50):
                direction = rng.standard_normal(len(free)) @ free
                direction /= np.abs(direction).max()
                moved = weights.copy()
                for (rows, columns), amount in zip(blocks, direction, strict=True):
                    moved[np.ix_(rows, columns)] += size * weights.min() * amount
                np.testing.assert_allclose(moved.sum(-1), 1)
                assert float(divergence(moved, scores)) > best


def test_one_family_is_softmax():
    query, key, value, key_bias = tree_arrays(2, heads=4, kv_heads=2)
    for is_causal in (False, True):
        assert_matches_reference(
            jitted(hierarchical_attention, Tree.uniform(LENGTH, LENGTH), is_causal=is_causal),
            lambda *a, c=is_causal: naive_attention(*a, is_causal=c),
            (query, key, value, key_bias),
            rtol=1e-4,
            atol=2e-5,
        )


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_uniform_equals_tables(is_causal):
    """By reshape and by gathers; the last families are not full, the key bias is per head, queries are grouped."""
    tree = Tree.uniform(50, (4, 3))
    arrays = tree_arrays(2, length=50, heads=4, kv_heads=2)
    bias = biases(tree, heads=4)

    def attend(tree):
        def call(query, key, value, key_bias):
            return hierarchical_attention(
                query, key, value, tree, key_bias=key_bias, sibling_bias=bias, is_causal=is_causal
            )

        @jax.jit
        def both(*arrays):
            out, vjp = jax.vjp(call, *arrays)
            return out, *vjp(jnp.cos(out))

        return both(*arrays)

    for one, two in zip(attend(tree), attend(tree.to_ragged()), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_batch_of_trees_is_each_of_them():
    trees = [Tree.from_lengths([[3, 4], [2, 3]]), Tree.from_lengths([5, 1, 6]), Tree.from_lengths([[12]])]
    arrays = tree_arrays(3)
    for is_causal in (False, True):
        together = jitted(hierarchical_attention, Tree.stack(trees), is_causal=is_causal)(*arrays)
        for i, tree in enumerate(trees):
            alone = jitted(hierarchical_attention, tree, is_causal=is_causal)(*(x[i] for x in arrays))
            np.testing.assert_allclose(together[i], alone, rtol=1e-5, atol=1e-6)


CUTS = [0, 5, 11, 12, 24, 39]


@pytest.mark.parametrize("tree", [Tree.uniform(41, (4, 3)), Tree.from_lengths([[5, 7], [1, 2, 9], [17]])])
@pytest.mark.parametrize("include_self", [True, False], ids=["self", "published"])
def test_causal_at_every_border(tree, include_self):
    call = jitted(hierarchical_attention, tree, is_causal=True, include_self=include_self)
    assert_causal(call, tree_arrays(1, length=41), positions=CUTS)


def test_masking_later_siblings_leaks():
    """The published causal scheme: weights of a token depend on means and energies that hold later tokens.

    With the token itself, since without it the first of a family has nothing to attend to and all φ are infinite.
    """
    tree = Tree.uniform(16, (4, 2))

    @jax.jit
    def published(query, key, value):
        masks = [jnp.where(np.tri(b, dtype=bool), 0.0, -jnp.inf)[None] for b in tree.branching]
        return hierarchical_attention(query, key, value, tree, sibling_bias=masks)

    arrays = tree_arrays(1, length=16)[:3]
    # No value of a later token is seen: it is the queries and keys that leak.
    assert_causal(lambda value: published(*arrays[:2], value), arrays[2:])
    with pytest.raises(AssertionError, match="not causal"):
        assert_causal(published, arrays)
    assert_causal(jitted_causal(tree), arrays)


def jitted_causal(tree):
    return jax.jit(lambda query, key, value: hierarchical_attention(query, key, value, tree, is_causal=True))


@pytest.mark.parametrize("kind", ["uniform", "ragged"])
def test_2048_steps_equal_the_whole(kind):
    """Token by token and in pieces, with a key bias and a sibling bias."""
    length = 2048
    tree = Tree.uniform(length, (16, 8))
    if kind == "ragged":
        rng = np.random.default_rng(0)
        sizes = [rng.integers(1, 30, 6).tolist() for _ in range(22)]
        spent = sum(map(sum, sizes))
        tree = Tree.from_lengths([*sizes, [length - spent]] if spent < length else sizes, length=None)
        length = tree.length
    arrays = tree_arrays(1, length=length, heads=2, kv_heads=1)
    bias = biases(tree)
    whole = jitted(hierarchical_attention, tree, sibling_bias=bias, is_causal=True)(*arrays)

    @jax.jit
    def run(state, *arrays):
        def step(state, token):
            query, key, value, key_bias = (x[:, None] for x in token)
            state, out = hierarchical_attention_step(
                state, query, key, value, tree, key_bias=key_bias, sibling_bias=bias
            )
            return state, out[:, 0]

        state, out = jax.lax.scan(step, state, tuple(jnp.moveaxis(x, 1, 0) for x in arrays))
        return state, jnp.moveaxis(out, 0, 1)

    state = hierarchical_attention_init_state(1, 2, WIDTH, tree)
    assert sum(x.size for x in state.key) == 2 * WIDTH * sum(tree.branching)
    state, out = run(state, *arrays)
    np.testing.assert_allclose(out, whole, rtol=0, atol=1e-5)
    assert int(state.length) == length
    # A prompt in one call, then the rest.
    prompt = tuple(x[:, :100] for x in arrays)
    state, first = hierarchical_attention_step(
        hierarchical_attention_init_state(1, 2, WIDTH, tree),
        *prompt[:3],
        tree,
        key_bias=prompt[3],
        sibling_bias=bias,
    )
    np.testing.assert_allclose(first, whole[:, :100], rtol=0, atol=1e-5)
    _, second = run(state, *(x[:, 100:300] for x in arrays))
    np.testing.assert_allclose(second, whole[:, 100:300], rtol=0, atol=1e-5)


def test_steps_beyond_the_tree_are_nan():
    tree = Tree.uniform(4, 2)
    x = normal(0, 1, 5, 1, WIDTH)
    state, out = hierarchical_attention_step(
        hierarchical_attention_init_state(1, 1, WIDTH, tree), x, x, x, tree
    )
    assert np.isnan(out).all() and int(state.length) == 5


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_extremes_stay_finite(is_causal, dtype):
    """Scores up to ±1000, everything removed, one leaf, tokens beyond the tree."""
    nested = [[[0]], [[[1, 2, 3]], 4], [5, [[[6]]], [7]]]
    tree = Tree.stack([Tree.from_nested(nested), Tree.from_nested([0])])
    query, key, value, key_bias = (x.astype(dtype) for x in tree_arrays(2, length=8))
    query, key = 30 * query, 30 * key
    for include_self in (True, False):
        call = jitted(hierarchical_attention, tree, is_causal=is_causal, include_self=include_self)

        @jax.jit
        def both(*arrays, call=call):
            out, vjp = jax.vjp(call, *arrays)
            return out, vjp(jnp.ones_like(out))

        for bias in (key_bias, 1000 * key_bias, removed(key_bias), jnp.full_like(key_bias, -jnp.inf)):
            out, gradients = both(query, key, value, bias)
            assert out.dtype == dtype
            assert np.isfinite(np.asarray(out, np.float32)).all()
            assert (np.asarray(out[1, 1:], np.float32) == 0).all()
            for gradient in gradients:
                assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_one_program_for_trees_of_one_shape():
    count = 0

    @jax.jit
    def call(tree, x):
        nonlocal count
        count += 1
        return hierarchical_attention(x, x, x, tree)

    one, two = Tree.from_lengths([[3, 4], [3]]), Tree.from_lengths([[1, 1, 5], [3]])
    shape = type(one.shape).union([one.shape, two.shape])
    x = normal(0, 10, 1, WIDTH)
    outs = [call(tree.pad(shape), x) for tree in (one, two)]
    assert count == 1
    for tree, out in zip((one, two), outs, strict=True):
        np.testing.assert_allclose(out, hierarchical_attention(x, x, x, tree), rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named(no_typecheck):
    x = normal(0, 1, 6, 2, WIDTH)
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
    state = hierarchical_attention_init_state(1, 2, WIDTH, tree)
    with pytest.raises(ValueError, match="state must be for"):
        hierarchical_attention_step(state, x, x, x, Tree.uniform(6, 2))
    with pytest.raises(ValueError, match="head_dim must be at least 1"):
        hierarchical_attention_init_state(1, 2, 0, tree)
