import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.positions import sinusoidal_encoding


def test_matches_the_definition():
    length, dim = 50, 8
    expected = np.zeros((length, dim))
    for p in range(length):
        for i in range(dim // 2):
            angle = p * 10000.0 ** (-2 * i / dim)
            expected[p, 2 * i], expected[p, 2 * i + 1] = np.cos(angle), np.sin(angle)
    encoding = sinusoidal_encoding(length, dim)
    assert encoding.dtype == jnp.float32
    np.testing.assert_allclose(encoding, expected, atol=1e-5)


def test_own_frequencies():
    omega = jnp.array([0.5, 2.0])
    encoding = sinusoidal_encoding(4, 4, omega=omega)
    np.testing.assert_allclose(encoding[3], [np.cos(1.5), np.sin(1.5), np.cos(6), np.sin(6)], atol=1e-6)
    assert sinusoidal_encoding(0, 4).shape == (0, 4)


def test_bad_arguments_are_refused(no_typecheck):
    for dim in (5, 0, -2):
        with pytest.raises(ValueError, match=f"dim must be even and positive.*got {dim}"):
            sinusoidal_encoding(4, dim)
    with pytest.raises(ValueError, match="length must not be negative; got -1"):
        sinusoidal_encoding(-1, 4)
    with pytest.raises(ValueError, match=r"omega must have shape \(dim/2,\) = \(2,\); got \(3,\)"):
        sinusoidal_encoding(4, 4, omega=jnp.ones(3))
