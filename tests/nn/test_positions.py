"""Absolute position encodings."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import LearnedPositions, MorletPositionalEncoding, SinusoidalPositions


@pytest.mark.parametrize(
    "module",
    [
        LearnedPositions(6, 8, rngs=nnx.Rngs(0)),
        SinusoidalPositions(6, 8),
        MorletPositionalEncoding(6, 8),
        MorletPositionalEncoding(6, 8, center="learned"),
    ],
    ids=lambda m: type(m).__name__,
)
def test_positions_add_rows_of_their_table(module, no_typecheck):
    x = jnp.zeros((2, 4, 8))
    np.testing.assert_allclose(module(x)[0], module.table()[:4], atol=1e-6)
    np.testing.assert_allclose(module(x, jnp.array([5, 0, 2, 2]))[1], module.table()[jnp.array([5, 0, 2, 2])])
    assert jnp.isnan(module(x, jnp.array([0, 1, 2, 6]))[:, 3]).all()
    with pytest.raises(ValueError, match="at most 6 positions; got 7"):
        module(jnp.zeros((1, 7, 8)))


def test_unknown_center():
    with pytest.raises(ValueError, match="center must be one of 'origin', 'learned'; got 'middle'"):
        MorletPositionalEncoding(6, 8, center="middle")
