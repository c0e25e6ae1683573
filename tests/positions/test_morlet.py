import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.positions import morlet_encoding, morlet_init, morlet_window, rotary, sinusoidal_encoding
from jaxattn.softmax import dot_product_attention
from jaxattn.testing import assert_matches_reference

B, T, N, K, H = 2, 24, 4, 2, 8


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def naive(log_omega, log_sigma, center=0.0, length=20):
    sigma = jnp.maximum(jnp.exp(log_sigma), 1e-3)
    omega = jnp.minimum(jnp.exp(log_omega), 0.95 * jnp.pi)
    omega = jnp.where(omega * sigma < 5, 5 / sigma, omega)
    p = jnp.arange(length)[:, None]
    window = jnp.exp(-((p - center) ** 2) / (2 * sigma**2))
    return jnp.stack([jnp.cos(omega * p) * window, jnp.sin(omega * p) * window], -1).reshape(length, -1)


@pytest.mark.parametrize("center", [False, True])
def test_matches_the_definition(center):
    # The second pair is not admissible (omega sigma < 5), the third beyond 0.95 pi.
    args = (jnp.array([0.0, -1.0, 3.0]), jnp.array([2.0, 1.0, 1.5]))
    args += (jnp.array([3.0, -1.0, 12.5]),) if center else ()

    def fn(log_omega, log_sigma, center=None):
        return morlet_encoding(20, log_omega, log_sigma, center=center)

    assert_matches_reference(jax.jit(fn), jax.jit(naive), args, rtol=3e-5)


@pytest.mark.parametrize("log_sigma", [50.0, jnp.inf])
def test_wide_windows_are_exactly_sinusoidal(log_sigma):
    log_omega = jnp.linspace(-6.0, 1.0, 8)
    for center in (None, 10.0 * jnp.arange(8)):
        wide = morlet_encoding(300, log_omega, jnp.full(8, log_sigma), center=center)
        np.testing.assert_array_equal(wide, sinusoidal_encoding(300, 16, omega=jnp.exp(log_omega)))


def test_extreme_parameters_have_finite_values_and_gradients():
    log_omega = jnp.array([0.0, 1e3, -1e3, 0.0, jnp.inf, -jnp.inf])
    log_sigma = jnp.array([jnp.inf, 1e3, -1e3, -1e3, jnp.inf, 0.0])

    def total(log_omega, log_sigma, center):
        out = morlet_encoding(50, log_omega, log_sigma, center=center)
        return out.sum(), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(
        log_omega, log_sigma, jnp.full(6, 7.0)
    )
    assert all(np.isfinite(x).all() for x in (out, *gradients))


def test_init_is_the_published_start():
    parameters = morlet_init(16, 100)
    assert parameters.center is None
    np.testing.assert_allclose(
        jnp.exp(parameters.log_omega[jnp.array([0, -1])]), [1, 0.99 * math.pi], rtol=1e-5
    )
    steps = np.diff(parameters.log_omega)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)  # geometric
    np.testing.assert_allclose(jnp.exp(parameters.log_omega + parameters.log_sigma), 5, rtol=1e-5)
    encoding = morlet_encoding(100, *parameters[:2])
    assert float(jnp.abs(encoding[25:]).max()) < 1e-3  # windows at the origin see nothing later
    # Admissible by a hair, so omega (below 0.95 pi) has the gradient.
    gradient = jax.grad(lambda w: morlet_encoding(9, w, parameters.log_sigma).sum())(parameters.log_omega)
    assert (np.asarray(gradient)[:-1] != 0).all()


def test_learned_centers_cover_the_context():
    parameters = morlet_init(64, 100, center="learned")
    encoding = morlet_encoding(100, parameters.log_omega, parameters.log_sigma, center=parameters.center)
    assert float(jnp.linalg.norm(encoding, axis=1).min()) > 0.5
    # With one pair there is nothing to space evenly.
    assert morlet_init(2, 10, center="learned").center.tolist() == [5.0]


def test_bad_encoding_arguments_are_refused(no_typecheck):
    with pytest.raises(ValueError, match="dim must be even"):
        morlet_init(7, 10)
    with pytest.raises(ValueError, match="center must be one of 'origin', 'learned'; got 'middle'"):
        morlet_init(8, 10, center="middle")
    with pytest.raises(ValueError, match="length must not be negative"):
        morlet_encoding(-1, jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match="log_sigma must have shape"):
        morlet_encoding(4, jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match="center must have shape"):
        morlet_encoding(4, jnp.zeros(2), jnp.zeros(2), center=jnp.zeros(3))
    with pytest.raises(ValueError, match="log_omega must have shape"):
        morlet_encoding(4, jnp.zeros((2, 2)), jnp.zeros(2))


# The window on the distance


def qkv():
    return normal(0, B, T, N, H), normal(1, B, T, K, H), normal(2, B, T, K, H)


def with_bias(q, k, v, log_sigma, is_causal=True):
    distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(k.shape[1])
    bias = -(distance**2) / (2 * jnp.exp(log_sigma)[:, None, None] ** 2)
    return dot_product_attention(q, k, v, bias=bias[None].astype(q.dtype), is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [False, True])
def test_window_equals_the_explicit_bias(is_causal):
    def fn(q, k, v, log_sigma):
        wide_q, wide_k = morlet_window(q, k, log_sigma)
        return dot_product_attention(wide_q, wide_k, v, scale=H**-0.5, is_causal=is_causal)

    def reference(q, k, v, log_sigma):
        return with_bias(q, k, v, log_sigma, is_causal)

    log_sigma = jnp.log(jnp.array([1.0, 3.0, 10.0, 1e4]))
    assert_matches_reference(jax.jit(fn), jax.jit(reference), (*qkv(), log_sigma), rtol=1e-4)


@pytest.mark.parametrize("ratio", [30, 300])
def test_error_stays_within_the_stated_bound(ratio):
    length, sigma = 2048, 2048 / ratio
    zeros = jnp.zeros((length, 1, 2))
    wide_q, wide_k = jax.jit(morlet_window)(zeros, zeros, jnp.log(jnp.array([sigma])))
    scores = np.asarray(wide_q[:, 0] @ wide_k[:, 0].T, np.float64) * 2**-0.5
    m = np.arange(length)[:, None]
    exact = -((m - m.T) ** 2) / (2 * sigma**2)

    def log_softmax(x):
        return x - np.logaddexp.reduce(x, axis=1, keepdims=True)

    error = np.abs(log_softmax(scores) - log_softmax(exact))[np.abs(m - m.T) < 3 * sigma]
    assert 0 < error.max() < ratio**2 / 4 * np.finfo(np.float32).eps


def test_window_positions_and_center():
    q, k, v = qkv()
    log_sigma = jnp.log(jnp.array([1.0, 3.0, 10.0, 50.0]))
    whole = jax.jit(with_bias)(q, k, v, log_sigma)
    # The last queries against all keys, as in decoding, with one centre for all steps.
    positions = jnp.broadcast_to(jnp.arange(T - 3, T), (B, 3))
    causal = jnp.arange(T) <= jnp.arange(T - 3, T)[:, None]

    @jax.jit
    def last(q, k, v):
        wide_q, wide_k = morlet_window(q, k, log_sigma, query_positions=positions, center=16.0)
        return dot_product_attention(wide_q, wide_k, v, scale=H**-0.5, mask=causal[None, None])

    out = last(q[:, -3:], k, v)
    np.testing.assert_allclose(out, whole[:, -3:], rtol=1e-3, atol=1e-4)
    unbatched = morlet_window(q[0], k[0], log_sigma)
    for a, b in zip(unbatched, morlet_window(q, k, log_sigma), strict=True):
        np.testing.assert_array_equal(a, b[0])
        assert b.dtype == jnp.float32


def test_window_composes_with_rotary_and_another_scale():
    q, k, v = qkv()
    log_sigma = jnp.log(jnp.array([1.0, 3.0, 10.0, 50.0]))

    @jax.jit
    def both(q, k, v):
        q, k = rotary(q), rotary(k)
        wide_q, wide_k = morlet_window(q, k, log_sigma, scale=0.7)
        out = dot_product_attention(wide_q, wide_k, v, scale=0.7, is_causal=True)
        return out, with_bias(q * 0.7 * H**0.5, k, v, log_sigma)

    out, expected = both(q, k, v)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)


def test_infinite_sigma_is_no_window():
    q, k, v = qkv()

    def fn(log_sigma):
        wide_q, wide_k = morlet_window(q, k, log_sigma)
        out = dot_product_attention(wide_q, wide_k, v, scale=H**-0.5)
        return out.sum(), out

    gradient, out = jax.jit(jax.grad(fn, has_aux=True))(jnp.full(N, jnp.inf))
    np.testing.assert_allclose(out, dot_product_attention(q, k, v), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradient, 0)


def test_bad_window_arguments_are_refused(no_typecheck):
    q, k, _ = qkv()
    log_sigma = jnp.zeros(N)
    with pytest.raises(ValueError, match="log_sigma must have shape"):
        morlet_window(q, k, jnp.zeros(3))
    with pytest.raises(ValueError, match="scale must not be 0"):
        morlet_window(q, k, log_sigma, scale=0.0)
    with pytest.raises(ValueError, match="query_positions must"):
        morlet_window(q, k, log_sigma, query_positions=jnp.arange(T + 1))
    with pytest.raises(ValueError, match="key must have the query's width"):
        morlet_window(q, k[..., :4], log_sigma)
    with pytest.raises(ValueError, match="key must have shape"):
        morlet_window(q, k[0], log_sigma)
