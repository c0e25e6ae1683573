"""Linear attention beyond the common suite: blocks, shared keys, far-apart weights, memory, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.core.call import check_call
from jaxattn.linear import linear_attention, linear_attention_init_state, linear_attention_step
from jaxattn.linear.attention import How, attend_tiled
from jaxattn.linear.plan import IDENTITY, Tiling
from jaxattn.testing import assert_matches_reference

B, N, K, M, V = 2, 4, 2, 5, 3
SMALL = Tiling(block=16, chunk=4, on_cpu=True)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def arrays(length, key_length=None, bias_heads=1):
    key_length = length if key_length is None else key_length
    key_bias = 3 * normal(B, key_length, bias_heads).at[:, 3].set(-jnp.inf)
    return (
        jnp.exp(normal(B, length, N, M)),
        jnp.exp(normal(B, key_length, K, M)),
        normal(B, key_length, K, V),
        key_bias,
    )


def dense(phi_q, phi_k, value, key_bias, *, is_causal, segment_ids=None):
    phi_k, value = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (phi_k, value))
    weights = jnp.einsum("btnm,bsnm->bnts", phi_q, phi_k)
    kept = key_bias > -jnp.inf
    bias = jnp.where(kept, jnp.exp(jnp.where(kept, key_bias, 0.0)), 0.0)
    weights *= jnp.moveaxis(bias, 1, 2)[:, :, None]
    if is_causal:
        weights = jnp.tril(weights)
    if segment_ids is not None:
        weights *= segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    total = weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bnts,bsnv->btnv", weights / jnp.where(total == 0, 1.0, total), value)


def compare(args, tiling, **options):
    def linear(query, key, value, key_bias):
        call = check_call(query, key, value, key_bias=key_bias, **options).with_key_weights()
        return call.merge_heads(attend_tiled(How(IDENTITY, tiling), [], call))

    assert_matches_reference(
        jax.jit(linear),
        lambda *a: dense(*a, **options),
        args,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("bias_heads", [1, N], ids=["shared bias", "bias a head"])
@pytest.mark.few(1)
def test_shared_keys(is_causal, bias_heads):
    compare(arrays(21, bias_heads=bias_heads), Tiling(32, 8, on_cpu=True), is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.few(1)
def test_several_blocks(is_causal):
    """Lengths that the blocks do not divide, and more or fewer keys than queries."""
    compare(arrays(37, 50), SMALL, is_causal=is_causal)
    if is_causal:
        compare(arrays(37, 20), SMALL, is_causal=True)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.few(1)
def test_vmapped_heads(is_causal):
    compare(arrays(21), Tiling(32, 8, on_cpu=False), is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.few(1)
def test_segments_in_any_order(is_causal):
    segment_ids = jnp.asarray(RNG.integers(-1, 3, (B, 37)))
    compare(arrays(37), SMALL, is_causal=is_causal, segment_ids=segment_ids)


def test_a_later_key_of_enormous_weight_leaves_earlier_queries_alone():
    """Were the largest weight of the whole sequence the reference, everything before it would become 0 / 0."""
    phi_q, phi_k, value, key_bias = arrays(20)
    call = jax.jit(
        lambda bias: linear_attention(phi_q, phi_k, value, key_bias=bias, is_causal=True, chunk_size=8)
    )
    plain, spiked = call(key_bias), call(key_bias.at[:, 13].set(3e4))
    np.testing.assert_array_equal(plain[:, :13], spiked[:, :13])
    np.testing.assert_allclose(spiked[:, 13:], jnp.broadcast_to(
        jnp.repeat(value[:, 13:14], N // K, axis=2), spiked[:, 13:].shape), rtol=1e-5, atol=1e-6)  # fmt: skip
    assert jnp.isfinite(jax.grad(lambda bias: call(bias).sum())(key_bias.at[:, 13].set(3e4))).all()


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_a_constant_in_the_key_bias_cancels(is_causal):
    phi_q, phi_k, value, key_bias = arrays(20)
    outs = [
        linear_attention(phi_q, phi_k, value, key_bias=key_bias + c, is_causal=is_causal)
        for c in (0.0, -4096.0, 4096.0)
    ]
    for out in outs[1:]:
        np.testing.assert_allclose(out, outs[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("scale", [1e-35, 1e-16, 1e19])
@pytest.mark.few(2)
def test_features_of_any_magnitude(is_causal, scale):
    phi_q, phi_k, value, _ = arrays(20)
    plain = linear_attention(phi_q, phi_k, value, is_causal=is_causal)
    for scale_k in (1.0, scale):
        args = scale * phi_q, scale_k * phi_k, value
        out, vjp = jax.vjp(lambda *a: linear_attention(*a, is_causal=is_causal), *args)
        # A log scale of 90 is itself rounded to 4e-6.
        np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-5)
        assert (abs(vjp(jnp.ones_like(out))[2]).sum() > 1).all()


def test_no_keys_give_zeros():
    assert (
        linear_attention(jnp.ones((2, 3, 4, 5)), jnp.ones((2, 0, 2, 5)), jnp.ones((2, 0, 2, 3))) == 0
    ).all()


def test_features_that_cancel_stay_finite():
    phi = jnp.ones((1, 6, 1, 2)).at[:, 1::2].set(jnp.array([1.0, -1.0]))
    query = jnp.ones((1, 6, 1, 2)) * jnp.array([1.0, -1.0])

    def call(query, phi):
        return linear_attention(query, phi[:, ::2], jnp.ones((1, 3, 1, 2)))

    out, vjp = jax.vjp(call, query, phi)
    assert jnp.isfinite(out).all() and all(jnp.isfinite(g).all() for g in vjp(jnp.ones_like(out)))


def test_whole_equals_step_by_step_over_a_thousand_tokens():
    phi_q, phi_k, value, _ = arrays(1024)
    whole = linear_attention(phi_q, phi_k, value, is_causal=True)

    def step(state, token):
        phi_q, phi_k, value = (x[:, None] for x in token)
        state, out = linear_attention_step(state, phi_q, phi_k, value)
        return state, out[:, 0]

    tokens = [jnp.moveaxis(x, 1, 0) for x in (phi_q, phi_k, value)]
    state, out = jax.lax.scan(step, linear_attention_init_state(B, K, M, value_dim=V), tokens)
    np.testing.assert_allclose(jnp.moveaxis(out, 0, 1), whole, atol=1e-5)
    # The state is as large after a thousand tokens as before the first.
    assert sum(x.size for x in jax.tree.leaves(state)) == B * K * (M * (V + 1) + 1)


@pytest.mark.slow
def test_memory_is_linear_in_length():
    """Of the causal gradient: no T×T, no M×V for every position."""

    def temporaries(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

        def loss(phi_q, phi_k, value):
            return linear_attention(phi_q, phi_k, value, is_causal=True).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(8192), temporaries(16384)
    assert long < 2.2 * short
    states_everywhere = 16384 * 2 * 64 * 65 * 4
    assert long < states_everywhere / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phi_k": normal(B, 7, K, M + 1)}, "key must have shape"),
        ({"phi_q": normal(B, 7, 3, M)}, "multiple of key's heads"),
        ({"value": jnp.zeros((B, 7, K, V), int)}, "value must be floating point"),
        ({"key_bias": normal(B, 6, 1)}, "key_bias must be broadcastable"),
        ({"segment_ids": jnp.zeros((B, 6), int)}, "segment_ids must have shape"),
        ({"segment_ids": jnp.zeros((B, 7))}, "segment_ids must be integer"),
        ({"chunk_size": 0}, "chunk_size must be None or a positive integer; got 0"),
        ({"phi_q": normal(B, 6, N, M), "segment_ids": jnp.zeros((B, 6), int)}, "as many keys as queries"),
    ],
)
def test_bad_arguments(change, message, no_typecheck):
    phi_q, phi_k, value, _ = arrays(7)
    call = {"phi_q": phi_q, "phi_k": phi_k, "value": value} | change
    with pytest.raises(ValueError, match=message):
        linear_attention(**call)


def test_a_state_that_does_not_fit(no_typecheck):
    phi_q, phi_k, value, _ = arrays(7)
    with pytest.raises(ValueError, match="state must be for"):
        linear_attention_step(linear_attention_init_state(B, 3, M, value_dim=V), phi_q, phi_k, value)
    with pytest.raises(ValueError, match="head_dim must be at least 1"):
        linear_attention_init_state(B, 3, 0, value_dim=V)


def test_the_program_does_not_grow_with_the_number_of_heads():
    def size(heads):
        x = jax.ShapeDtypeStruct((1, 128, heads, 4), jnp.float32)
        gradient = jax.grad(lambda x: linear_attention(x, x, x, is_causal=True).sum())
        return len(jax.jit(gradient).trace(x).lower().as_text().splitlines())

    assert size(2) == size(6)
