"""What carries fused kernels, on the CPU: the key bias in the values, the limits, the choice, tokamax's own XLA."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.core.arguments import Arguments
from jaxattn.softmax import attention as dot_product
from jaxattn.softmax import dot_product_attention
from jaxattn.softmax.cudnn import cudnn_attention, cudnn_cannot, nvidia_capability
from jaxattn.softmax.splash import tokamax_attention
from jaxattn.softmax.values import key_bias_by_values
from jaxattn.testing import assert_matches_reference
from tests.reference import naive_attention

B, T, N, K, H, V = 2, 11, 4, 2, 8, 6
RNG = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


def arguments(dtype=jnp.bfloat16, length=T, head_dim=H, **changes):
    a = Arguments(
        normal(B, length, N, head_dim, dtype=dtype),
        normal(B, length, K, head_dim, dtype=dtype),
        normal(B, length, K, V, dtype=dtype),
        key_bias=None,
        mask=None,
        bias=None,
        scale=0.5,
        is_causal=True,
    )
    return a._replace(**changes)


def plain(query, key, value):
    return dot_product_attention(query, key, value, is_causal=True, implementation="xla")


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("shape", [(B, T, N), (1, T, 1), (B, T, 1)])
def test_key_bias_by_values(kv_heads, shape):
    key_bias = normal(*shape).at[0, 4:6].set(-jnp.inf)
    assert_matches_reference(
        jax.jit(functools.partial(key_bias_by_values, plain)),
        jax.jit(functools.partial(naive_attention, is_causal=True)),
        (normal(B, T, N, H), normal(B, T, kv_heads, H), normal(B, T, kv_heads, V), key_bias),
    )


def test_key_bias_by_values_bfloat16():
    args = tuple(x.astype(jnp.bfloat16) for x in (normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, V)))
    key_bias = jax.nn.log_sigmoid(2 * normal(B, T, N))
    out = key_bias_by_values(plain, *args, key_bias)
    exact = naive_attention(*(x.astype(jnp.float32) for x in args), key_bias, is_causal=True)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2e-2, atol=2e-2)


def test_key_bias_by_values_pads_to_a_multiple_of_eight():
    seen = []

    def attend(query, key, value):
        seen.append(value.shape[-1])
        return plain(query, key, value)

    key_bias_by_values(attend, normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, 8), normal(B, T, 1))
    assert seen == [16]


def test_key_bias_by_values_removes_rows_with_finite_gradients():
    args = (normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, V), jnp.full((B, T, N), -jnp.inf))
    out = key_bias_by_values(plain, *args)
    grads = jax.grad(lambda *a: key_bias_by_values(plain, *a).sum(), (0, 1, 2, 3))(*args)
    assert (out == 0).all() and all((g == 0).all() for g in grads)


def test_cudnn_wrapper_against_the_definition(monkeypatch):
    """The wrapper's own work (padding widths, values, empty sequences), with XLA standing in for the kernel."""
    fused = jax.nn.dot_product_attention

    def stand_in(query, key, value, *, implementation, **options):
        assert implementation == "cudnn"
        assert query.shape[-1] == key.shape[-1] == value.shape[-1] and value.shape[-1] % 8 == 0
        return fused(query, key, value, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    lengths = jnp.asarray([7, 0])
    a = arguments(jnp.float32, key_value_seq_lengths=lengths)
    for key_bias in (None, normal(B, T, N), normal(1, T, 1)):
        got = cudnn_attention(a._replace(key_bias=key_bias))
        expected = naive_attention(*a[:3], key_bias, scale=0.5, is_causal=True, key_value_seq_lengths=lengths)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


HOPPER, AMPERE = (9, 0), (8, 0)
LIMITS = {
    "fine": (arguments(), AMPERE, None),
    "key_bias": (arguments(key_bias=normal(B, T, N)), AMPERE, None),
    "no GPU": (arguments(), None, "needs an NVIDIA GPU"),
    "float32": (arguments(jnp.float32), HOPPER, "float16 or all in bfloat16; got float32"),
    "bias": (arguments(bias=normal(1, 1, T, T)), HOPPER, "no bias gradient"),
    "mask": (arguments(mask=jnp.ones((1, 1, T, T), bool)), HOPPER, "no mask that depends on the query"),
    "segments": (arguments(segment_ids=(jnp.ones((B, T), int),) * 2), HOPPER, "no segment_ids"),
    "float16 key_bias": (arguments(jnp.float16, key_bias=normal(B, T, N)), HOPPER, "use bfloat16"),
    "wide on Hopper": (arguments(head_dim=256), HOPPER, None),
    "wide on Ampere": (arguments(head_dim=136), AMPERE, "up to 128 on this device; .* need 136"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_cudnn_limits(case):
    a, capability, message = LIMITS[case]
    reason = cudnn_cannot(a, capability)
    if message is None:
        assert reason is None
    else:
        assert re.search(message, reason)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the CPU")
def test_explicit_cudnn_on_cpu_says_why_not():
    x = normal(B, T, N, H, dtype=jnp.bfloat16)
    assert nvidia_capability() is None
    with pytest.raises(ValueError, match=r"implementation='cudnn' needs an NVIDIA GPU; .*'cpu'"):
        dot_product_attention(x, x, x, implementation="cudnn")


@pytest.mark.parametrize(
    "platform, capability, tokamax, a, expected",
    [
        ("cpu", None, False, arguments(jnp.float32), "xla"),
        ("cpu", None, True, arguments(jnp.float32, length=1024), "blockwise"),
        ("gpu", HOPPER, False, arguments(), "cudnn"),
        ("gpu", HOPPER, False, arguments(jnp.float32), "xla"),
        ("gpu", HOPPER, False, arguments(jnp.float32, length=8192), "blockwise"),
        ("gpu", None, False, arguments(), "xla"),
        ("tpu", None, True, arguments(), "tokamax"),
        ("tpu", None, True, arguments(bias=normal(1, 1, T, T)), "xla"),
        ("tpu", None, False, arguments(), "xla"),
    ],
)
def test_choice(monkeypatch, platform, capability, tokamax, a, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(dot_product, "nvidia_capability", lambda: capability)
    monkeypatch.setattr(dot_product, "tokamax_is_installed", lambda: tokamax)
    assert dot_product.choose_implementation(a) == expected


def test_tokamax_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokamax", None)
    x = normal(B, T, N, H)
    with pytest.raises(ImportError, match=r"pip install 'jaxattn\[tpu\]'"):
        dot_product_attention(x, x, x, implementation="tokamax")


@pytest.mark.parametrize("change, message", [
    ({"bias": normal(1, 1, T, T)}, "takes no bias"),
    ({"mask": jnp.ones((1, 1, T, T), bool)}, "takes no mask"),
    ({"segment_ids": jnp.ones((B, T), int)}, "takes no segment_ids"),
])  # fmt: skip
def test_tokamax_limits(change, message):
    x = normal(B, T, N, H)
    with pytest.raises(ValueError, match=f"implementation='tokamax' {message}"):
        dot_product_attention(x, x, x, implementation="tokamax", **change)


@pytest.mark.parametrize("backend", ["xla", "xla_chunked"])
@pytest.mark.parametrize("with_key_bias", [False, True])
def test_tokamax_matches(backend, with_key_bias):
    pytest.importorskip("tokamax")
    a = arguments(jnp.float32)
    key_bias = (normal(B, T, N),) if with_key_bias else ()
    assert_matches_reference(
        lambda q, k, v, *b: tokamax_attention(Arguments(q, k, v, *(b or (None,)), *a[4:]), backend),
        jax.jit(functools.partial(naive_attention, scale=0.5, is_causal=True)),
        (*a[:3], *key_bias),
    )


def test_tokamax_by_name_with_lengths():
    pytest.importorskip("tokamax")
    args = (normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, V))
    options = {"is_causal": True, "key_value_seq_lengths": jnp.asarray([7, 0])}
    got = dot_product_attention(*args, **options, implementation="tokamax")
    np.testing.assert_allclose(got, naive_attention(*args, **options), rtol=1e-5, atol=1e-6)
