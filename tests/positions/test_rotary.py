import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.positions import rotary
from jaxattn.testing import assert_matches_reference

B, T, N, H = 2, 7, 3, 8


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def naive(x, positions, base=10000.0):
    """Pairs as complex numbers, turned by exp(i p omega)."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    omega = base ** (-jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
    turned = pairs * jnp.exp(1j * positions[..., None, None] * omega)
    return jnp.stack([turned.real, turned.imag], -1).reshape(x.shape)


def test_matches_complex_rotation():
    x = normal(0, B, T, N, H)
    assert_matches_reference(jax.jit(rotary), jax.jit(lambda x: naive(x, jnp.arange(T))), (x,))
    positions = jnp.array([[3, 1, 4, 1, 5, 9, 2], [0, 0, 0, 100, 200, 300, 400]])
    np.testing.assert_allclose(
        rotary(x, positions, base=500.0), naive(x, positions, 500.0), rtol=1e-4, atol=1e-4
    )


def test_products_depend_on_the_distance_alone():
    q, k = normal(1, 1, T, N, H), normal(2, 1, T, N, H)

    @jax.jit
    def scores(shift):
        turned = rotary(q, jnp.arange(T) + shift), rotary(k, jnp.arange(T) + shift)
        return jnp.einsum("btnh,bsnh->bnts", *turned)

    for shift in (1, 17, 500):
        np.testing.assert_allclose(scores(shift), scores(0), atol=1e-3)
    unmoved = rotary(q, jnp.zeros(T, int))
    np.testing.assert_array_equal(unmoved, q)


def test_positions_of_new_tokens_continue_the_sequence():
    x = normal(0, B, T, N, H)
    later = rotary(x[:, 4:], 4 + jnp.arange(T - 4))
    np.testing.assert_array_equal(later, rotary(x)[:, 4:])


def test_dtype_unbatched_and_vmap():
    x = normal(0, B, T, N, H)
    whole = rotary(x)
    np.testing.assert_allclose(rotary(x[0]), whole[0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(rotary)(x), whole, rtol=1e-6)
    coarse = rotary(x.astype(jnp.bfloat16))
    assert coarse.dtype == jnp.bfloat16
    # Rounded once on the way in and once on the way out, not in between.
    exact = rotary(x.astype(jnp.bfloat16).astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(coarse, exact)


def test_bad_arguments_are_refused(no_typecheck):
    x = normal(0, B, T, N, H)
    with pytest.raises(ValueError, match="x must have an even last axis"):
        rotary(x[..., :5])
    with pytest.raises(ValueError, match="x must have shape"):
        rotary(x[0, 0])
    with pytest.raises(ValueError, match="base must be positive; got -1"):
        rotary(x, base=-1)
    with pytest.raises(ValueError, match="positions must"):
        rotary(x, jnp.arange(T + 1))
    with pytest.raises(ValueError, match="positions must"):
        rotary(x[0], jnp.zeros((B, T)))
