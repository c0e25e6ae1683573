"""bfloat16 as accelerators compute it, on this CPU: operands of products as they come, float32 sums."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxattn
import jaxattn.linear.attention
import jaxattn.tree.arguments

LENGTH, HEADS, WIDTH = 96, 2, 16
FEATURE_MAP = jaxattn.FeatureMap.create(jax.random.key(9), WIDTH, 64)
TREE = jaxattn.Tree.uniform(LENGTH, (4, 4, 3))
KERNELS = {
    "linear": lambda q, k, v, **options: jaxattn.linear_attention(jnp.exp2(q), jnp.exp2(k), v, **options),
    "features": lambda q, k, v, **options: jaxattn.random_feature_attention(q, k, v, FEATURE_MAP, **options),
    "tree": lambda q, k, v, **options: jaxattn.hierarchical_attention(q, k, v, TREE, **options),
}
# Half a unit in the last place is 2e-3 of a number on average.
TOLERANCE = 0.015


@pytest.fixture
def as_on_tpu(monkeypatch):
    """Kernels take the code for TPUs."""
    for module in (jaxattn.linear.attention, jaxattn.tree.arguments):
        monkeypatch.setattr(module, "by_platform", lambda choose, run, *args: run(choose("tpu"), *args))
    monkeypatch.setattr(jaxattn.tree.arguments, "BLOCK", 16)


@pytest.mark.usefixtures("as_on_tpu")
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.few(2)
def test_outputs_and_gradients(name, is_causal):
    """Also with values far from 0, where what the gradient of queries and keys is made of cancels."""
    draws = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(draw, (1, LENGTH, HEADS, WIDTH)).astype(jnp.bfloat16) for draw in draws]

    @jax.jit
    def both(query, key, value, cotangent):
        function = functools.partial(KERNELS[name], is_causal=is_causal)
        out, vjp = jax.vjp(function, query, key, value)
        return out, *vjp(cotangent)

    for offset in (0, 3):
        query, key, value, cotangent = arrays
        given = query, key, value + jnp.bfloat16(offset), cotangent
        exact = both(*(x.astype(jnp.float32) for x in given))
        for found, expected in zip(both(*given), exact, strict=True):
            assert found.dtype == jnp.bfloat16
            error = jnp.linalg.norm(found.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
            assert error < TOLERANCE
