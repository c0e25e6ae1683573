import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import (
    MECHANISMS,
    Alibi,
    Attention,
    AttentionInputs,
    CrossCorrelation,
    EnergyGated,
    Forgetting,
    Hierarchical,
    LayerSizes,
    RandomFeatures,
    Retention,
    Softmax,
    parse_mechanism,
    register_mechanism,
    spell_mechanism,
)


@pytest.mark.parametrize(
    ("text", "mechanism"),
    [
        ("softmax", Softmax()),
        ("softmax:window=64", Softmax(local_window_size=64)),
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


SOFTMAX_OPTIONS = "options of softmax are window=LEFT, window=LEFT,RIGHT, cap=CAP and sinks; got "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not known; accepted: features["),
        ("sofmax", "'sofmax' is not known; accepted: features["),
        ("softmax:3", f"{SOFTMAX_OPTIONS}'3'; accepted: softmax["),
        ("softmax:", f"{SOFTMAX_OPTIONS}''; accepted: softmax["),
        ("softmax:window=-1", f"{SOFTMAX_OPTIONS}'window=-1'"),
        (
            "softmax:cap=0",
            "logits_soft_cap must be None or a positive number known at trace time, 1e-30 to 1e+30",
        ),
        ("softmax:cap=1.2.3", f"{SOFTMAX_OPTIONS}'cap=1.2.3'"),
        ("softmax:window=3:window=4", "an option of softmax may come once; got 'window=3:window=4'"),
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
        "softmax:window=3:cap=2.5:sinks",
        "softmax:window=3,0+gate=prefix",
        "softmax:cap=0.0000001",
        "softmax:cap=0.3333333333333333",
        "softmax:cap=20000000000000000",
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


def test_windows_of_numpy_are_spelled(no_typecheck):
    assert spell_mechanism(Softmax(local_window_size=np.int64(4))) == "softmax:window=4"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"implementation": "flash"}, "implementation must be one of"),
        ({"sinks": "no"}, "sinks must be True or"),
    ],
)
def test_softmax_checks_its_options_when_made(no_typecheck, options, message):
    with pytest.raises(ValueError, match=message):
        Softmax(**options)


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
    assert forward(Softmax(local_window_size=(2, 1)), 10, 3, 5) == 15 * 4 * 40
    assert forward(Softmax(local_window_size=9), 10, 3, 5) == 15 * 4 * 100
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


LEARNED = [
    EnergyGated(CrossCorrelation(2)),
    EnergyGated(Hierarchical((4, 2), sibling_bias="learned")),
    RandomFeatures("gerf", "fastfood_learnable", num_features=8),
]


@pytest.mark.parametrize("mechanism", LEARNED, ids=repr)
@pytest.mark.few(1)
def test_learned_arrays_have_the_dtype_of_the_parameters(mechanism):
    module = Attention(
        2, 8, mechanism=mechanism, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        assert variable[...].dtype == jnp.bfloat16, path
    x = jax.random.normal(jax.random.key(0), (1, 6, 8)).astype(jnp.bfloat16)
    out = jax.jit(lambda x: module(x, is_causal=True))(x)
    assert out.dtype == jnp.bfloat16 and jnp.isfinite(out).all()


@pytest.mark.parametrize(
    "mechanism",
    [Softmax(), CrossCorrelation(2), RandomFeatures(num_features=8), Hierarchical((4, 2))],
    ids=repr,
)
@pytest.mark.few(2)
def test_decoding_states_have_key_heads_unless_gated(mechanism):
    """At 8 query heads a key head, a gate a query head takes states of 8 heads; nothing else does."""

    def heads(mechanism):
        state = Attention(8, 64, mechanism=mechanism, num_kv_heads=1, rngs=nnx.Rngs(0)).init_state(1, 16)
        inner = state["mechanism"]
        inner = inner.get("inner", inner) if isinstance(inner, dict) else inner
        sizes = jax.tree.leaves(jax.tree.map(lambda x: x.size, inner))
        return sum(sizes)

    plain, gated = heads(mechanism), heads(EnergyGated(mechanism))
    if isinstance(mechanism, CrossCorrelation):
        assert plain == gated  # its logits are of query heads, and so are its shifted keys
    else:
        assert gated > plain


def test_gates_a_head_leave_keys_and_values_grouped():
    """With one key head and 8 gated query heads nothing of the size of 8 heads of keys is made."""
    module = EnergyGated(Softmax("xla")).build(LayerSizes(8, 16, 1, in_features=4), rngs=nnx.Rngs(0))
    query, key = jnp.ones((1, 2, 8, 16)), jnp.ones((1, 512, 1, 16))
    inputs = AttentionInputs(inputs=jnp.ones((1, 512, 4)))
    jaxpr = jax.make_jaxpr(lambda q, k: module(q, k, k, inputs))(query, key)
    assert max(_sizes(jaxpr.jaxpr)) < 512 * 8 * 16


def _sizes(jaxpr):
    found = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    for eqn in jaxpr.eqns:
        for parameter in eqn.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                found += _sizes(inner)
    return found


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

    @jax.jit
    def both(q, k, v, x):
        whole = module(q, k, v, AttentionInputs(inputs=x, token_mask=mask, is_causal=True))
        given = AttentionInputs(inputs=x, key_bias=jnp.where(mask, 0.0, -jnp.inf)[..., None])
        return whole, module.step(module.init_state(1, 6, jnp.float32), q, k, v, given)[1]

    whole, out = both(q, k, v, x)
    np.testing.assert_allclose(out[:, 2:], whole[:, 2:], atol=1e-5)


def test_a_window_without_a_right_side_is_causal():
    """Statistics of the whole sequence leak there, and biases by distance are right."""
    window = Softmax(local_window_size=(3, 0))
    x = jax.random.normal(jax.random.key(0), (1, 6, 8))
    with pytest.raises(ValueError, match="normalization 'sequence'"):
        Attention(2, 8, mechanism=EnergyGated(window, "sequence"), rngs=nnx.Rngs(0))(x)
    attention = Attention(2, 8, mechanism=Alibi(window), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(attention(x), attention(x, is_causal=True), atol=1e-6)


@pytest.mark.parametrize("gate", [Alibi, Forgetting])
@pytest.mark.parametrize("inner", [Softmax(sinks=True), Retention()], ids=["sinks", "retention"])
def test_a_bias_by_distance_refuses_weights_that_do_not_add_up_to_one(gate, inner):
    with pytest.raises(ValueError, match=f"inner of {gate.__name__} must have weights that add up to 1"):
        Attention(2, 8, mechanism=gate(EnergyGated(inner)), rngs=nnx.Rngs(0))
