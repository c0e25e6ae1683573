"""ALiBi and the forgetting gate against their definitions over pairs, in float64, and over thousands of nats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn
from jaxattn.nn import Attention, parse_mechanism, spell_mechanism
from jaxattn.testing import assert_matches_reference
from tests.common import naive

RNG = np.random.default_rng(0)
Q, K, V = (jnp.asarray(RNG.standard_normal((2, 12, 4, 8)), jnp.float32) for _ in range(3))
LOGITS = jnp.asarray(RNG.standard_normal((2, 12, 4)), jnp.float32)


def pairwise(query, key, value, bias):
    """Softmax attention with a bias for every pair, (B, N, T, S), causal."""
    scores = naive.dot_products(query, key) + bias
    return naive.attend(scores, value, jnp.tril(jnp.ones((1, *scores.shape[-2:]), bool)))


def test_alibi_is_the_bias_by_distance():
    slopes = jaxattn.alibi_slopes(4)
    distance = jnp.arange(12)[:, None] - jnp.arange(12)

    def ours(query, key, value):
        bias = jaxattn.alibi_key_bias(jnp.arange(12), slopes)[None]
        return jaxattn.dot_product_attention(query, key, value, key_bias=bias, is_causal=True)

    def reference(query, key, value):
        return pairwise(query, key, value, -jnp.asarray(slopes, query.dtype)[:, None, None] * distance)

    assert_matches_reference(ours, reference, (Q, K, V), rtol=2e-5)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12])
def test_alibi_slopes_fall_from_head_to_head(heads):
    slopes = jaxattn.alibi_slopes(heads)
    assert slopes.shape == (heads,) and len(set(slopes)) == heads and (slopes <= 0.7072).all()
    power = 2 ** int(np.log2(heads))
    np.testing.assert_allclose(slopes[:power], 2.0 ** (-8 * np.arange(1, power + 1) / power))


def test_forgetting_is_the_product_of_later_gates():
    def ours(query, key, value, logits):
        bias = jaxattn.forget_key_bias(logits)
        return jaxattn.dot_product_attention(query, key, value, key_bias=bias, is_causal=True)

    def reference(query, key, value, logits):
        # c_i − c_j, pair by pair, as published.
        sums = jnp.cumsum(jnp.moveaxis(jax.nn.log_sigmoid(logits), 1, 2), axis=-1)
        return pairwise(query, key, value, sums[..., :, None] - sums[..., None, :])

    assert_matches_reference(ours, reference, (Q, K, V, LOGITS), rtol=2e-5)


@pytest.mark.parametrize("family", ["softmax", "linear"])
def test_thousands_of_nats(family):
    """4,096 nats of decay: the error is the rounding of the bias, half a unit in the last place of 4,096."""
    length = 2048
    rng = np.random.default_rng(1)
    query, key, value = (jnp.asarray(rng.standard_normal((1, length, 1, 4)), jnp.float32) for _ in range(3))
    logits = jnp.asarray(rng.uniform(-3, -1, (1, length, 1)), jnp.float32)
    assert jaxattn.forget_key_bias(logits).max() > 4096
    key_bias = jaxattn.forget_key_bias(logits)
    sums = np.cumsum(-np.log1p(np.exp(-np.asarray(logits, np.float64))), axis=1)[0, :, 0]
    if family == "softmax":
        out = jaxattn.dot_product_attention(query, key, value, key_bias=key_bias, is_causal=True)
        scores = np.asarray(query, np.float64)[0, :, 0] @ np.asarray(key, np.float64)[0, :, 0].T / 2
    else:
        phi = [np.asarray(x, np.float64)[0, :, 0] ** 2 + 0.1 for x in (query, key)]
        out = jaxattn.linear_attention(query**2 + 0.1, key**2 + 0.1, value, key_bias=key_bias, is_causal=True)
        scores = np.log(phi[0] @ phi[1].T)
    scores = np.where(np.tri(length, dtype=bool), scores + sums[:, None] - sums[None, :], -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ np.asarray(value, np.float64)[0, :, 0]
    np.testing.assert_allclose(out[0, :, 0], expected, atol=2e-3)


def test_padding_decays_nothing():
    mask = jnp.arange(12) != 5
    holed = LOGITS.at[:, 5].set(jnp.nan)
    bias = jaxattn.forget_key_bias(holed, mask=jnp.broadcast_to(mask, (2, 12)))
    np.testing.assert_allclose(bias[:, 5], bias[:, 4])
    without = jaxattn.forget_key_bias(jnp.delete(LOGITS, 5, axis=1))
    np.testing.assert_allclose(jnp.delete(bias, 5, axis=1), without, rtol=1e-6)


@pytest.mark.parametrize(
    "text", ["softmax+alibi", "features:oprf-orf:16+forget", "linear:elu+forget", "tree:4x2+forget"]
)
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.few(2)
def test_spelled_and_decoded(text, kv_heads):
    mechanism = parse_mechanism(text)
    assert spell_mechanism(mechanism) == text
    attention = Attention(2, 8, mechanism=mechanism, num_kv_heads=kv_heads, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.standard_normal((2, 9, 8)), jnp.float32)

    @jax.jit
    def decoded(x):
        state, first = attention.step(attention.init_state(2, 9), x[:, :4])
        _, rest = attention.step(state, x[:, 4:])
        return jnp.concatenate([first, rest], axis=1)

    whole = jax.jit(lambda x: attention(x, is_causal=True))(x)
    np.testing.assert_allclose(decoded(x), whole, atol=1e-5)


def test_bad_arguments(no_typecheck):
    with pytest.raises(ValueError, match=r"slopes must have shape \(N,\)"):
        jaxattn.alibi_key_bias(jnp.arange(3), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="num_heads must be at least 1; got 0"):
        jaxattn.alibi_slopes(0)
    with pytest.raises(ValueError, match="logits must be floating point"):
        jaxattn.forget_key_bias(jnp.ones((2, 3), int))
    with pytest.raises(ValueError, match=r"mask must have shape \(B, S\)"):
        jaxattn.forget_key_bias(LOGITS, mask=jnp.ones((2, 11), bool))
    with pytest.raises(ValueError, match="state must have shape logits' "):
        jaxattn.forget_key_bias_step(jnp.zeros((2, 3)), LOGITS)
    with pytest.raises(ValueError, match=r"accepted: \+alibi"):
        parse_mechanism("softmax+alibi=3")
