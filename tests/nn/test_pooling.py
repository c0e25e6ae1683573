"""Pooling of token vectors, and the heads on batches without sequences or without tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import InceptiveHead, Pooling, PoolingHead
from jaxattn.nn.pooling import POOLINGS

X = jax.random.normal(jax.random.key(0), (3, 5, 4))
TOKEN_MASK = jnp.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum()


@pytest.mark.parametrize("kind", POOLINGS)
def test_it_is_that_of_the_real_tokens_in_float64(kind):
    pooling = Pooling(kind, 4, rngs=nnx.Rngs(0))
    w = np.arange(4) / 4
    if pooling.weights is not None:
        np.testing.assert_allclose(
            pooling(X, TOKEN_MASK), Pooling("mean", 4, rngs=nnx.Rngs(0))(X, TOKEN_MASK), atol=1e-6
        )
        pooling.weights[...] = jnp.asarray(w, jnp.float32)
    expected = np.zeros((3, 4))
    for row, mask in enumerate(np.asarray(TOKEN_MASK[:2])):
        x = np.asarray(X[row], np.float64)[mask]
        of = {"mean": x.mean(0), "max": x.max(0), "cls": x[0], "attention": softmax(x @ w) @ x}
        expected[row] = of[kind]
    poisoned = jnp.where(TOKEN_MASK[..., None], X, jnp.nan)
    np.testing.assert_allclose(jax.jit(lambda x: pooling(x, TOKEN_MASK))(poisoned), expected, atol=1e-6)
    gradient = jax.grad(lambda x: (pooling(x, TOKEN_MASK) ** 2).sum())(poisoned)
    assert jnp.isfinite(gradient).all()
    half = pooling(X.astype(jnp.bfloat16), TOKEN_MASK)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.02)


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("shape", [(0, 5, 16), (2, 0, 16)])
@pytest.mark.few(3)
def test_empty_batches_and_sequences(kind, shape):
    head = PoolingHead(16, 3, pooling=kind, rngs=nnx.Rngs(0))
    logits = head(jnp.ones(shape))
    np.testing.assert_array_equal(logits, np.zeros((shape[0], 3)))  # offsets start at 0
    assert head.relevance(jnp.ones(shape)).shape == shape[:2]


@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_the_inceptive_head_on_an_empty_batch(normalization):
    sizes = {"filters": 4, "num_heads": 4, "hidden_features": 8}
    head = InceptiveHead(16, 3, normalization=normalization, **sizes, rngs=nnx.Rngs(0))
    assert head(jnp.ones((0, 5, 16))).shape == (0, 3)
    assert head.relevance(jnp.ones((0, 5, 16))).shape == (0, 5)
