"""Gradients of attention over trees with key biases of thousands of nats, as decays and gates make them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("slope", [30.0, 1000.0, -1000.0])
@pytest.mark.few(2)
def test_gradients_are_finite(is_causal, slope):
    """Ten tokens leave places of a uniform tree empty, in tiles of queries too."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 10, 1, 4)), jnp.float32) for _ in range(3))
    key_bias = slope * jnp.arange(10.0)[None, :, None]
    tree = jaxattn.Tree.uniform(10, (3, 2))

    def loss(q, k, v, key_bias):
        out = jaxattn.hierarchical_attention(q, k, v, tree, key_bias=key_bias, is_causal=is_causal)
        return (out**2).sum()

    for gradient in jax.grad(loss, (0, 1, 2, 3))(q, k, v, key_bias):
        assert jnp.isfinite(gradient).all()
