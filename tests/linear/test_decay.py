"""Linear attention without normalisation: sums that decay, against float64 and step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.linear import linear_attention, linear_attention_init_state, linear_attention_step
from jaxattn.testing import assert_close_to_reference, assert_decode_matches, assert_matches_reference
from tests.common import naive

RNG = np.random.default_rng(0)
B, N, K, M, V = 2, 4, 2, 5, 3


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def arrays(length, decay=1.0, batch=B, heads=N, kv_heads=K):
    """phi_q, phi_k, value, key_bias and a log decay of about `decay` nats a token."""
    return (
        normal(batch, length, heads, M),
        normal(batch, length, kv_heads, M),
        normal(batch, length, kv_heads, V),
        normal(batch, length, heads),
        -decay * jnp.abs(normal(batch, length, heads)),
    )


def kernel(chunk_size=None):
    def call(phi_q, phi_k, value, key_bias, log_decay, segment_ids=None):
        return linear_attention(
            phi_q, phi_k, value, key_bias=key_bias, log_decay=log_decay, normalize=False, is_causal=True,
            segment_ids=segment_ids, chunk_size=chunk_size,
        )  # fmt: skip

    return jax.jit(call)


def test_shared_keys_in_several_chunks():
    assert_matches_reference(kernel(8), naive.decayed, arrays(21))


def test_segments_in_any_order():
    """Each is a sequence of its own: decays of the others' tokens do not count."""
    ids = jnp.asarray(RNG.integers(0, 3, (B, 21)))
    args = arrays(21)
    out = kernel(8)(*args, ids)
    for b in range(B):
        for segment in range(3):
            keep = np.flatnonzero(ids[b] == segment)
            alone = naive.decayed(*(x[b : b + 1, keep] for x in args))
            np.testing.assert_allclose(out[b, keep], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decay", [1.0, 1e-3])
@pytest.mark.few(1)
def test_long_decays_are_exact(decay):
    """4,096 tokens, 4,096 or 4 nats in all: values and gradients, that of the decay included, in 2 blocks."""
    args = arrays(4096, decay * np.sqrt(np.pi / 2), 1, 1, 1)
    assert abs(float(args[-1].sum()) / (4096 * decay) + 1) < 0.05
    assert_close_to_reference(kernel(), naive.decayed, args, max_error=1e-5, check_gradients=True)


def test_no_decay_is_the_plain_sum_and_minus_infinity_forgets_all():
    phi_q, phi_k, value, key_bias, log_decay = arrays(12)
    out = linear_attention(phi_q, phi_k, value, normalize=False, is_causal=True, chunk_size=4)
    expected = naive.decayed(phi_q, phi_k, value, 0 * key_bias, 0 * log_decay)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    log_decay = log_decay.at[:, 6].set(-jnp.inf)
    out, vjp = jax.vjp(kernel(4), phi_q, phi_k, value, key_bias, log_decay)
    late = kernel(4)(*(x[:, 6:] for x in (phi_q, phi_k, value, key_bias, log_decay)))
    np.testing.assert_allclose(out[:, 6:], late, rtol=1e-4, atol=1e-5)
    assert all(jnp.isfinite(g).all() for g in vjp(out))


def test_a_constant_decay_may_be_one_number_a_head():
    phi_q, phi_k, value, _, _ = arrays(12)
    gamma = jnp.log(1 - 2.0 ** -jnp.arange(1.0, N + 1))
    out = linear_attention(phi_q, phi_k, value, log_decay=gamma[None, None], normalize=False, is_causal=True)
    expected = naive.decayed(phi_q, phi_k, value, jnp.zeros((B, 12, N)), jnp.broadcast_to(gamma, (B, 12, N)))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_steps():
    def step(state, phi_q, phi_k, value, key_bias, log_decay):
        return linear_attention_step(
            state, phi_q, phi_k, value, key_bias=key_bias, log_decay=log_decay, normalize=False
        )

    assert_decode_matches(
        kernel(),
        lambda: linear_attention_init_state(B, K, M, num_heads=N, value_dim=V),
        jax.jit(step),
        arrays(12),
        prefill=5,
    )


def test_bad_arguments(no_typecheck):
    phi_q, phi_k, value, _, log_decay = arrays(4)
    with pytest.raises(ValueError, match="log_decay needs normalize=False"):
        linear_attention(phi_q, phi_k, value, log_decay=log_decay, is_causal=True)
    with pytest.raises(ValueError, match="normalize=False is for causal attention"):
        linear_attention(phi_q, phi_k, value, normalize=False)
    with pytest.raises(ValueError, match=r"log_decay must be broadcastable to \(B, S, N\)"):
        linear_attention(phi_q, phi_k, value, log_decay=log_decay[:, :3], normalize=False, is_causal=True)
    with pytest.raises(ValueError, match=r"key_bias must be at most 40 with normalize=False.*got 41"):
        bias = jnp.full((1, 4, 1), 41.0)
        linear_attention(phi_q, phi_k, value, key_bias=bias, normalize=False, is_causal=True)
    state = linear_attention_init_state(B, K, M, value_dim=V)
    with pytest.raises(ValueError, match="state must have num_heads = 4"):
        linear_attention_step(state, phi_q, phi_k, value, log_decay=log_decay, normalize=False)
