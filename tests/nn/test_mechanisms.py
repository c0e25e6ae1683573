import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import CrossCorrelation, EnergyGated, Softmax, parse_mechanism


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
    "text", ["", "sofmax", "lags:x", "lags:1:2", "lags:-1", "softmax+gat", "softmax+gate=mean"]
)
def test_bad_spellings_list_what_is_accepted(text):
    with pytest.raises(ValueError, match="accepted: softmax, lags"):
        parse_mechanism(text)


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
    module = EnergyGated().build(2, 4, 8, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 3, 2, 4))
    with pytest.raises(ValueError, match="inputs must be the layer's input"):
        module(x, x, x)


@pytest.mark.parametrize("normalization", ["running", "prefix", None])
def test_padded_tokens_enter_no_statistics_in_decoding(normalization):
    """Left padding given as a key bias in a step is what a token mask is in the whole pass."""
    module = EnergyGated(normalization=normalization).build(2, 4, 8, rngs=nnx.Rngs(0))
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    x = jax.random.normal(jax.random.key(1), (1, 6, 8))
    mask = jnp.array([[False, False, True, True, True, True]])
    whole = module(q, k, v, inputs=x, token_mask=mask, is_causal=True)
    key_bias = jnp.where(mask, 0.0, -jnp.inf)[..., None]
    _, out = module.step(module.init_state(1, 6, 2, jnp.float32), q, k, v, inputs=x, key_bias=key_bias)
    np.testing.assert_allclose(out[:, 2:], whole[:, 2:], atol=1e-5)
