"""Code is chosen for the platform that is lowered for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn.core.platform import OTHER, PLATFORMS, by_platform, computed_once

NUMBERS = {"cpu": 2.0, "cuda": 3.0, "tpu": 3.0, OTHER: 5.0}


def times(number, x):
    return number * jnp.sin(x)


def numbered(x):
    return by_platform(NUMBERS.__getitem__, times, x)


def lowered(fn, platform, *args):
    return jax.jit(fn).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def test_every_platform_gets_its_own():
    for platform in (*PLATFORMS, "rocm"):
        text = lowered(numbered, platform, 1.0)
        found = {number for number in NUMBERS.values() if f"dense<{number:e}>" in text}
        assert found == {NUMBERS.get(platform, NUMBERS[OTHER])}


def test_transformations():
    x = jnp.arange(3.0)
    np.testing.assert_allclose(numbered(x), 2 * np.sin(x), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: numbered(x).sum())(x), 2 * np.cos(x), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(numbered)))(x), 2 * np.cos(x), rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(numbered, (x,), (x,))[1], 2 * x * np.cos(x), rtol=1e-6)


@pytest.mark.parametrize("platform, loops", [("cpu", True), ("cuda", False), ("tpu", False)])
def test_softmax_attention_in_blocks_where_the_program_will_run(platform, loops):
    x = jax.ShapeDtypeStruct((1, 128, 1, 8), jnp.float32)

    def gradient(x):
        return jax.grad(lambda x: jaxattn.dot_product_attention(x, x, x).sum())(x)

    def decode(x):
        state = jaxattn.dot_product_attention_init_state(1, 128, 1, 8)
        return jaxattn.dot_product_attention_step(state, x, x, x)[1]

    for fn in (gradient, decode):
        assert ("stablehlo.while" in lowered(fn, platform, x)) == loops


def test_residuals_of_other_platforms_take_no_memory():
    """The scores that accelerators would keep for the gradient of 1,024 tokens are 4 MiB a head."""
    x = jax.ShapeDtypeStruct((1, 1024, 8, 8), jnp.float32)
    gradient = jax.grad(lambda x: jaxattn.dot_product_attention(x, x, x).sum())
    memory = jax.jit(gradient).lower(x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**24


def test_linear_attention_loops_over_heads_on_a_cpu_alone():
    """And over so few tokens nowhere: all platforms then share one program, which is traced once."""
    few, x = (jax.ShapeDtypeStruct((2, length, 4, 8), jnp.float32) for length in (8, 128))
    assert "platform_index" not in str(jax.make_jaxpr(lambda x: jaxattn.linear_attention(x, x, x))(few))
    texts = {p: lowered(lambda x: jaxattn.linear_attention(x, x, x), p, x) for p in ("cpu", "tpu")}
    assert texts["cpu"].count("stablehlo.while") > texts["tpu"].count("stablehlo.while")


def test_removed_keys_where_products_are_of_bfloat16_parts(monkeypatch):
    """As on a TPU: −inf less its largest part would be NaN."""
    einsum = jnp.einsum

    def in_parts(spec, x, y, precision):
        large = x.astype(jnp.bfloat16).astype(x.dtype)
        return einsum(spec, large, y) + einsum(spec, x - large, y)

    monkeypatch.setattr(jnp, "einsum", in_parts)
    x = jnp.array([-jnp.inf, jnp.finfo(jnp.float32).min, -1.5, 0.0])
    np.testing.assert_allclose(computed_once(x), x, rtol=1e-2)
