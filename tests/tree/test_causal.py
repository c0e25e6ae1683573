"""The causal form: no token depends on later ones, and decoding equals the whole."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.testing import assert_causal
from jaxattn.tree import (
    Tree,
    hierarchical_attention,
    hierarchical_attention_init_state,
    hierarchical_attention_step,
)
from tests.tree.arrays import WIDTH, jitted, normal, sibling_biases, tree_arrays

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.parametrize(
    ("tree", "include_self"),
    [(Tree.uniform(41, (4, 3)), True), (Tree.from_lengths([[5, 7], [1, 2, 9], [17]]), False)],
    ids=["uniform", "ragged"],
)
@pytest.mark.few(1)
def test_causal_at_every_border(tree, include_self):
    call = jitted(hierarchical_attention, tree, is_causal=True, include_self=include_self)
    assert_causal(call, tree_arrays(1, length=41), positions=[0, 5, 11, 12, 24, 39])


def test_masking_later_siblings_leaks():
    """The published causal scheme: weights of a token depend on means and energies of later tokens.

    With the token itself, since without it the first of a family has nothing to attend to and all φ are infinite.
    """
    tree = Tree.uniform(16, (4, 2))

    @jax.jit
    def published(query, key, value):
        masks = [jnp.where(np.tri(b, dtype=bool), 0.0, -jnp.inf)[None] for b in tree.branching]
        return hierarchical_attention(query, key, value, tree, sibling_bias=masks)

    arrays = tree_arrays(1, length=16)[:3]
    # No value of a later token is seen: the queries and keys leak.
    assert_causal(lambda value: published(*arrays[:2], value), arrays[2:])
    with pytest.raises(AssertionError, match="not causal"):
        assert_causal(published, arrays)


@pytest.mark.parametrize(("kind", "heads"), [("uniform", 1), ("ragged", 2)])
@pytest.mark.few(1)
def test_decoding_equals_the_whole(kind, heads):
    """Token by token and in pieces, with a key bias and a sibling bias, grouped queries.

    A key bias for each query head needs a state for each; one that they share does not.
    """
    tree = Tree.uniform(512, (8, 4))
    if kind == "ragged":
        rng = np.random.default_rng(0)
        tree = Tree.from_lengths([rng.integers(1, 30, 4).tolist() for _ in range(8)])
    *arrays, key_bias = tree_arrays(1, length=tree.length, heads=2, kv_heads=1)
    arrays = (*arrays, key_bias[..., :heads])
    bias = sibling_biases(tree)
    whole = jitted(hierarchical_attention, tree, sibling_bias=bias, is_causal=True)(*arrays)

    @functools.partial(jax.jit, static_argnames="count")
    def decode(state, *arrays, count=1):
        def step(state, tokens):
            *qkv, key_bias = tokens
            return hierarchical_attention_step(state, *qkv, tree, key_bias=key_bias, sibling_bias=bias)

        pieces = tuple(jnp.moveaxis(x.reshape(1, -1, count, *x.shape[2:]), 1, 0) for x in arrays)
        state, out = jax.lax.scan(step, state, pieces)
        return state, jnp.moveaxis(out, 0, 1).reshape(1, -1, *out.shape[3:])

    start = hierarchical_attention_init_state(1, 1, WIDTH, tree, num_heads=heads)
    assert sum(x.size for x in start.mean) == heads * 2 * WIDTH * sum(tree.branching)
    state, out = decode(start, *arrays)
    np.testing.assert_allclose(out, whole, rtol=0, atol=1e-5)
    assert state.length.tolist() == [tree.length]
    # In pieces of several tokens.
    _, out = decode(start, *(x[:, :100] for x in arrays), count=20)
    np.testing.assert_allclose(out, whole[:, :100], rtol=0, atol=1e-5)
    # A row without a token stays as it is.
    *qkv, key_bias = (x[:, :1] for x in arrays)
    none = {"key_bias": key_bias, "query_seq_lengths": jnp.array([0])}
    idle, _ = jax.jit(lambda state: hierarchical_attention_step(state, *qkv, tree, **none))(state)
    chex.assert_trees_all_equal(idle, state)


@pytest.mark.parametrize(
    ("branching", "include_self"), [((2, 3, 2, 4), True), ((2, 3, 2, 4), False), ((16, 2, 3), True)]
)
@pytest.mark.few(1)
def test_tokens_at_once_are_tokens_one_by_one(branching, include_self):
    """Outputs and states, from every position on, also where fewer come than the call has room for."""
    length, count = 48, 11
    tree = Tree.uniform(length, branching)
    arrays = tree_arrays(1, length=length, heads=2, kv_heads=1)
    bias = sibling_biases(tree)

    @jax.jit
    def step(state, lengths, *arrays):
        *qkv, key_bias = arrays
        return hierarchical_attention_step(
            state, *qkv, tree, key_bias=key_bias, sibling_bias=bias, include_self=include_self,
            query_seq_lengths=lengths,
        )  # fmt: skip

    @jax.jit
    def clean(state):
        """Means of children that do not exist may be anything."""
        mean = [
            jnp.where(jnp.isfinite(weight)[..., None], x, 0)
            for weight, x in zip(state.log_weight, state.mean, strict=True)
        ]
        return state._replace(mean=mean)

    numbers = [np.asarray(x) for x in arrays]
    state, states, outs = hierarchical_attention_init_state(1, 1, WIDTH, tree, num_heads=2), [], []
    for t in range(length):
        states.append(state)
        state, out = step(state, None, *(x[:, t : t + 1] for x in numbers))
        outs.append(np.asarray(out)[0, 0])
    states.append(state)
    outs = np.stack(outs)
    for start in range(length):
        real = min(count, length - start, start % 12)
        part = (np.pad(x[:, start : start + real], [(0, 0), (0, count - real), *[(0, 0)] * (x.ndim - 2)])
                for x in numbers)  # fmt: skip
        state, out = step(states[start], np.array([real]), *part)
        np.testing.assert_allclose(np.asarray(out)[0, :real], outs[start : start + real], atol=1e-5)
        chex.assert_trees_all_close(clean(state), clean(states[start + real]), atol=1e-5)


def test_steps_beyond_the_tree_are_nan():
    tree = Tree.uniform(4, 2)
    x = normal(0, 1, 5, 1, WIDTH)
    step = jax.jit(lambda state, x: hierarchical_attention_step(state, x, x, x, tree))
    state, out = step(hierarchical_attention_init_state(1, 1, WIDTH, tree), x)
    assert np.isnan(out).all() and state.length.tolist() == [5]
