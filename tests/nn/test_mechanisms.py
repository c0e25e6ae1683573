import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import (
    MECHANISMS,
    AttentionInputs,
    CrossCorrelation,
    EnergyGated,
    Hierarchical,
    LayerSizes,
    RandomFeatures,
    Softmax,
    parse_mechanism,
    register_mechanism,
    spell_mechanism,
)


@pytest.mark.parametrize(
    ("text", "mechanism"),
    [
        ("softmax", Softmax()),
        ("lags", CrossCorrelation(lags=8)),
        ("lags:3", CrossCorrelation(lags=3)),
        ("softmax+gate", EnergyGated()),
        ("softmax+gate=none", EnergyGated(normalization=None)),
        ("softmax+gate=prefix", EnergyGated(normalization="prefix")),
        ("lags:2+gate=running", EnergyGated(inner=CrossCorrelation(lags=2))),
    ],
)
def test_spellings(text, mechanism):
    assert parse_mechanism(text) == mechanism


def test_leak_is_passed_on():
    assert parse_mechanism("softmax+gate=sequence", allow_leak=True).allow_leak
    assert not parse_mechanism("softmax+gate=sequence").allow_leak


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not known; accepted: features["),
        ("sofmax", "'sofmax' is not known; accepted: features["),
        ("softmax:3", "softmax does not take the options '3'; accepted: softmax."),
        ("softmax:", "softmax does not take the options ''; accepted: softmax."),
        ("lags:x", "lags must be a whole number; got 'x'; accepted: lags[:LAGS]."),
        ("lags:", "lags must be a whole number; got ''; accepted: lags[:LAGS]."),
        ("lags:1:2", "lags does not take the options '1', '2'; accepted: lags[:LAGS]."),
        ("lags:-1", "lags must be at least 0; got -1; accepted: lags[:LAGS]."),
        (
            "features:oprf",
            "features need a pair COMPONENT-WEIGHTS, such as oprf-orf; got 'oprf'; accepted: feat",
        ),
        (
            "features:oprf-orf:x",
            "the number of features must be a whole number; got 'x'; accepted: features[",
        ),
        ("features:oprf-orf:8:redraw", "redraw must be a whole number; got ''; accepted: features["),
        ("tree:", "branching must be a whole number; got ''; accepted: tree["),
        ("tree:4x", "branching must be a whole number; got ''; accepted: tree["),
        ("tree:4:bias=", "options of tree are noself and bias="),
        ("softmax+", "'+' is not known; accepted: features["),
        ("softmax+gat", "'+gat' is not known; accepted: features["),
        ("softmax+gate=", "the option of +gate must be one of running, prefix, none, sequence; got ''"),
        (
            "softmax+gate=mean",
            "the option of +gate must be one of running, prefix, none, sequence; got 'mean'",
        ),
    ],
)
def test_bad_spellings_say_what_is_wrong_and_what_is_accepted(text, message):
    with pytest.raises(ValueError, match=re.escape(f"attention {text!r}: {message}")):
        parse_mechanism(text)


@pytest.mark.parametrize(
    "text",
    [
        "softmax",
        "lags:3",
        "features:oprf-p_model:32:redraw=500",
        "tree:given:noself",
        "tree:64x16:bias=learned+gate=none",
        "softmax+gate=sequence",
        "lags:2+gate=running+gate=none",
    ],
)
def test_spelling_is_the_inverse_of_parsing(text):
    assert spell_mechanism(parse_mechanism(text, allow_leak="sequence" in text)) == text


def test_options_without_a_spelling_are_not_lost():
    with pytest.raises(ValueError, match="options that no spelling says; nearest is 'softmax'"):
        spell_mechanism(Softmax(implementation="xla"))


def test_flops_by_hand():
    def forward(mechanism, *sizes):
        return mechanism.flops(*sizes).forward

    # 8 tokens in pairs: 4, 2 and 1 families of 2. Scores and values 4 b² a family, three means 6 b, not at the root.
    by_hand = 4 * (16 + 12) + 2 * (16 + 12) + 16
    assert forward(Hierarchical((2,)), 8, 1, 1) == by_hand
    assert forward(Hierarchical((2,), include_self=False), 8, 3, 5) == 15 * by_hand
    # 10 tokens in families of 4: the last has 2 places too many; then one of 3.
    assert forward(Hierarchical((4,)), 10, 1, 1) == 3 * (4 * 16 + 6 * 4) + 4 * 9
    assert forward(EnergyGated(Softmax()), 10, 3, 5) == 15 * 4 * 100
    assert forward(RandomFeatures("oprf", "orf", 16), 10, 3, 5) == 15 * 4 * 10 * (16 + 16)
    assert forward(RandomFeatures("trigrf", "orf", 16), 10, 3, 5) == 15 * 4 * 10 * (8 + 16)
    # Grouped queries share keys: two products for 3 queries' heads, one for the single key head.
    assert RandomFeatures("oprf", "orf", 16).flops(10, 3, 5, 1) == (20 * 4 * 5 * 32, 20 * 4 * 5 * 48)
    with pytest.raises(NotImplementedError, match="does not say how many operations"):
        Hierarchical().flops(10, 1, 1)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'softmax' is registered already, for Softmax"):
        register_mechanism(dataclasses.replace(MECHANISMS["lags"], name="softmax"))
    register_mechanism(MECHANISMS["lags"])
    with pytest.raises(ValueError, match="lower-case"):
        register_mechanism(dataclasses.replace(MECHANISMS["lags"], name="a:b"))


def test_prefix_needs_softmax_inside():
    with pytest.raises(ValueError, match="inner=Softmax"):
        parse_mechanism("lags:2+gate=prefix")


@pytest.mark.parametrize(
    "mechanism", [Softmax(), EnergyGated(), EnergyGated(normalization=None), CrossCorrelation(2)], ids=repr
)
def test_inside_flax_multi_head_attention(mechanism):
    """Under Flax's own module: gradients reach the mechanism, and padding given by a mask changes nothing."""
    rngs = nnx.Rngs(0)
    fn = mechanism.attention_fn(2, 4, rngs=rngs)
    mha = nnx.MultiHeadAttention(2, 8, attention_fn=fn, decode=False, rngs=rngs)
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))
    padded = jnp.concatenate([x, jnp.full((2, 3, 8), 7.0)], axis=1)
    mask = (jnp.arange(9) < 6)[None, None, None, :]
    run = nnx.jit(lambda mha, x, mask=None: mha(x, mask=mask))
    np.testing.assert_allclose(run(mha, padded, mask)[:, :6], run(mha, x), atol=1e-5)
    grads = nnx.jit(nnx.grad(lambda m: (m(x, is_causal=True) ** 2).sum()))(mha)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    own = jax.tree.leaves(grads["attention_fn"]) if "attention_fn" in grads else []
    assert len(own) == len(jax.tree.leaves(nnx.state(fn, nnx.Param)))


def test_attention_fn_refuses_what_it_cannot_do():
    fn = Softmax().attention_fn(2, 4, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 3, 2, 4))
    with pytest.raises(ValueError, match="dropout_rate"):
        fn(x, x, x, dropout_rate=0.1, deterministic=False)
    with pytest.raises(ValueError, match="sow_weights"):
        fn(x, x, x, module=fn)
    with pytest.raises(ValueError, match="bias"):
        fn(x, x, x, bias=jnp.zeros((1, 2, 3, 3)))


def test_energy_needs_the_layer_input():
    module = EnergyGated().build(LayerSizes(2, 4, in_features=8), rngs=nnx.Rngs(0))
    x = jnp.ones((1, 3, 2, 4))
    with pytest.raises(ValueError, match="inputs must be the layer's input"):
        module(x, x, x)


@pytest.mark.parametrize("normalization", ["running", "prefix", None])
def test_padded_tokens_enter_no_statistics_in_decoding(normalization):
    """Left padding given as a key bias in a step is what a token mask is in the whole pass."""
    module = EnergyGated(normalization=normalization).build(LayerSizes(2, 4, in_features=8), rngs=nnx.Rngs(0))
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    x = jax.random.normal(jax.random.key(1), (1, 6, 8))
    mask = jnp.array([[False, False, True, True, True, True]])
    whole = module(q, k, v, AttentionInputs(inputs=x, token_mask=mask, is_causal=True))
    key_bias = jnp.where(mask, 0.0, -jnp.inf)[..., None]
    _, out = module.step(module.init_state(1, 6, jnp.float32), q, k, v, inputs=x, key_bias=key_bias)
    np.testing.assert_allclose(out[:, 2:], whole[:, 2:], atol=1e-5)
