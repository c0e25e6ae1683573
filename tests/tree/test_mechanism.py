"""The tree mechanism, its sibling bias, and trees put into models that exist."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn import Tree, replace_rows
from jaxattn.nn import (
    Attention,
    Encoder,
    EnergyGated,
    Hierarchical,
    RandomFeatures,
    SiblingBias,
    inject,
    parse_mechanism,
    replace_attention,
)
from jaxattn.testing import assert_causal, assert_decode_matches

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 8)), jnp.float32)


def layer(mechanism, **options):
    return Attention(2, 8, mechanism=mechanism, rngs=nnx.Rngs(0), **options)


def randomised(module):
    """The module with every parameter moved: sibling biases start at 0, where nothing would show."""
    rng = np.random.default_rng(1)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32), params)
    return nnx.merge(graph, params, rest)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "fourier"])
@pytest.mark.few(1)
def test_sibling_bias_depends_on_the_offset(kind):
    bias = randomised(SiblingBias(kind, 3, levels=2, reach=4, rngs=nnx.Rngs(0)))
    found = bias(Tree.uniform(100, (10, 3)))
    assert [x.shape for x in found] == [(3, 10, 10), (3, 3, 3), (3, 3, 3), (3, 2, 2)]
    for x in found:
        np.testing.assert_allclose(x[:, 1:, 1:], x[:, :-1, :-1], atol=1e-5)
    np.testing.assert_allclose(found[2], found[1])  # beyond `levels`
    assert not np.allclose(found[0][:, 0, 1], found[0][:, 1, 0])
    if kind == "learned":
        np.testing.assert_allclose(found[0][:, 0, 4:], np.broadcast_to(found[0][:, 0, 4:5], (3, 6)))


def test_a_bias_is_causal_and_decodes():
    mechanism = EnergyGated(inner=Hierarchical((3, 2), sibling_bias="learned"))
    module = randomised(layer(mechanism, num_kv_heads=1, projection_norm=True, query_residual=True))
    whole = jax.jit(lambda x: module(x, is_causal=True))
    assert_causal(whole, (X,))
    step = jax.jit(lambda state, x: module.step(state, x))
    assert_decode_matches(whole, lambda: module.init_state(2, 12), step, (X,), prefill=5)


def test_a_tree_at_the_call():
    trees = Tree.stack([Tree.from_lengths([5, 7]), Tree.from_lengths([[2, 2], [3, 5]])])
    module = layer(Hierarchical())
    together = module(X, tree=trees)
    alone = module(X[:1], tree=Tree.from_lengths([5, 7]))
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    with pytest.raises(ValueError, match="tree must be given at the call"):
        module(X)
    with pytest.raises(ValueError, match="no block has one"):
        Encoder(1, 8, 2, rngs=nnx.Rngs(0))(X, tree=trees)
    with pytest.raises(ValueError, match="tree is for mechanisms that attend over one"):
        layer(None)(X, tree=trees)


def test_the_tree_function_gets_the_length():
    seen = []

    def tree_fn(length):
        seen.append(length)
        return Tree.uniform(length, length)

    module = layer(Hierarchical(tree_fn=tree_fn))
    np.testing.assert_allclose(module(X), layer(None)(X), atol=1e-5)
    assert seen == [12]


@pytest.mark.parametrize("flax", [False, True], ids=["Attention", "MultiHeadAttention"])
def test_injection_keeps_weights_and_changes_the_chosen_layers(flax):
    class Stack(nnx.Module):
        def __init__(self, rngs):
            make = functools.partial(nnx.MultiHeadAttention, decode=False) if flax else Attention
            self.layers = nnx.List([make(2, 8, rngs=rngs) for _ in range(4)])

        def __call__(self, x):
            return [x := x + layer(x) for layer in self.layers]

    model = Stack(nnx.Rngs(0))
    before = model(X)
    flat = inject(model, lambda length: Tree.uniform(length, length))(X)
    np.testing.assert_allclose(flat[-1], before[-1], rtol=1e-4, atol=1e-4)  # one family with self is softmax
    changed = inject(model, lambda length: Tree.uniform(length, 3), layers=[2, -1])(X)
    for i in range(2):
        np.testing.assert_array_equal(changed[i], before[i])
    assert not np.allclose(changed[2], before[2], atol=1e-4)
    np.testing.assert_array_equal(model(X)[-1], before[-1])  # the model itself stays as it was
    published = inject(model, lambda length: Tree.uniform(length, 3), layers=[2], include_self=False)
    assert not np.allclose(published(X)[2], changed[2], atol=1e-4)


def test_injection_names_what_is_wrong():
    encoder = Encoder(3, 8, 2, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"layers must be numbers of the model's 3 attention layers; got \[3\]"
    ):
        inject(encoder, None, layers=[0, 3])
    with pytest.raises(ValueError, match="0 attention layers"):
        inject(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), None)
    gated = Encoder(1, 8, 2, mechanism=EnergyGated(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="layer 0 has EnergyGatedModule"):
        inject(gated, None)


def test_other_mechanisms_can_be_put_in():
    encoder = Encoder(2, 8, 2, rngs=nnx.Rngs(0))
    changed = replace_attention(encoder, EnergyGated(inner=RandomFeatures(num_features=16)), layers=[1])
    out = nnx.jit(lambda model, x: model(x))(changed, X)
    assert out.shape == X.shape and np.isfinite(out).all()


def test_query_residual_and_projection_norm():
    """The two options of the published encoder, by hand for one head and a flat tree."""
    module = Attention(1, 8, projection_norm=True, query_residual=True, rngs=nnx.Rngs(0))
    query, key, value = (
        norm(project(X)) for norm, project in zip(
            module.projection_norms, (module.query, module.key, module.value), strict=True
        )
    )  # fmt: skip
    np.testing.assert_allclose(query.mean(-1), 0, atol=1e-5)
    weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", query, key) / 8**0.5)
    expected = module.out(jnp.einsum("bnts,bsnh->btnh", weights, value) + query)
    np.testing.assert_allclose(module(X), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "mechanism"),
    [
        ("tree", Hierarchical()),
        ("tree:64x16", Hierarchical((64, 16))),
        ("tree:8:noself:bias=fourier", Hierarchical((8,), include_self=False, sibling_bias="fourier")),
        ("tree:given:noself", Hierarchical(include_self=False)),
        ("tree:4+gate", EnergyGated(inner=Hierarchical((4,)))),
    ],
)
def test_spelling(text, mechanism):
    assert parse_mechanism(text) == mechanism


@pytest.mark.parametrize(
    "text", ["tree:1", "tree:ax2", "tree:4:self", "tree:4:bias=big", "tree:4+gate=prefix"]
)
def test_bad_spelling(text):
    with pytest.raises(ValueError, match=r"branching|malformed|bias|prefix"):
        parse_mechanism(text)


def test_both_kinds_of_tree_at_once():
    with pytest.raises(ValueError, match="give one of them"):
        Hierarchical((4,), tree_fn=lambda length: Tree.uniform(length, 2))
    with pytest.raises(ValueError, match="segment_ids cannot be used"):
        layer(Hierarchical((4,)))(X, segment_ids=jnp.zeros((2, 12), jnp.int32))


def test_a_state_with_a_tree_of_tables_has_rows_that_give_way():
    """Every array of a state has a row a sequence, those of the tree included."""

    def tree_fn(length):
        return Tree.from_lengths([3] * (length // 3))

    module = layer(Hierarchical(tree_fn=tree_fn))
    x = jax.random.normal(jax.random.key(2), (3, 6, 8))

    @jax.jit
    def replaced(x):
        state, _ = module.step(module.init_state(2, 6), x[:2, :4])
        new, _ = module.step(module.init_state(1, 6), x[2:, :4])
        return module.step(replace_rows(state, jnp.array([1]), new), x[jnp.array([0, 2]), 4:])[1]

    whole = jax.jit(lambda x: module(x, is_causal=True))(x)[jnp.array([0, 2]), 4:]
    np.testing.assert_allclose(replaced(x), whole, atol=1e-5)
