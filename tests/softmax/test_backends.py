"""What carries fused kernels, on the CPU: the key bias in the values, the limits, the choice, tokamax's own XLA."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.core.call import check_call
from jaxattn.softmax import attention, cudnn, dot_product_attention
from jaxattn.softmax.attention import choose_implementation
from jaxattn.softmax.bias_by_values import attend_with_key_bias
from jaxattn.softmax.cudnn import cudnn_attention, cudnn_cannot
from jaxattn.softmax.splash import tokamax_attention
from jaxattn.testing import assert_matches_reference
from tests.reference import naive_attention

B, T, N, K, H, V = 2, 11, 4, 2, 8, 6
RNG = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


def qkv(dtype=jnp.float32, length=T, head_dim=H):
    shapes = (N, head_dim), (K, head_dim), (K, V)
    return tuple(normal(B, length, *shape, dtype=dtype) for shape in shapes)


def call(dtype=jnp.bfloat16, length=T, head_dim=H, **options):
    return check_call(*qkv(dtype, length, head_dim), scale=0.5, is_causal=True, **options)


def plain(query, key, value):
    return dot_product_attention(query, key, value, is_causal=True, implementation="xla")


def by_values(query, key, value, key_bias, attend=plain):
    checked = check_call(query, key, value, key_bias=key_bias)
    return checked.merge_heads(attend_with_key_bias(attend, checked))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("shape", [(B, T, N), (1, T, 1), (B, T, 1)])
def test_key_bias_by_values(kv_heads, shape):
    key_bias = normal(*shape).at[0, 4:6].set(-jnp.inf)
    assert_matches_reference(
        jax.jit(by_values),
        jax.jit(functools.partial(naive_attention, is_causal=True)),
        (normal(B, T, N, H), normal(B, T, kv_heads, H), normal(B, T, kv_heads, V), key_bias),
    )


def test_key_bias_by_values_bfloat16():
    args = qkv(jnp.bfloat16)
    key_bias = jax.nn.log_sigmoid(2 * normal(B, T, N))
    out = by_values(*args, key_bias)
    exact = naive_attention(*(x.astype(jnp.float32) for x in args), key_bias, is_causal=True)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2e-2, atol=2e-2)


def test_key_bias_by_values_pads_to_a_multiple_of_eight():
    seen = []

    def attend(query, key, value):
        seen.append(value.shape[-1])
        return plain(query, key, value)

    by_values(normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, 8), normal(B, T, 1), attend)
    assert seen == [16]


def test_key_bias_by_values_removes_rows_with_finite_gradients():
    args = (*qkv(), jnp.full((B, T, N), -jnp.inf))
    out = by_values(*args)
    grads = jax.grad(lambda *a: by_values(*a).sum(), (0, 1, 2, 3))(*args)
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
    args, options = qkv(), {"scale": 0.5, "is_causal": True, "key_value_seq_lengths": lengths}
    for key_bias in (None, normal(B, T, N), normal(1, T, 1)):
        checked = check_call(*args, key_bias=key_bias, **options)
        got = checked.merge_heads(cudnn_attention(checked))
        np.testing.assert_allclose(got, naive_attention(*args, key_bias, **options), rtol=1e-5, atol=1e-6)


TURING, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0)
LIMITS = {
    "fine": (call(), AMPERE, None),
    "key_bias": (call(key_bias=normal(B, T, N)), AMPERE, None),
    "not installed": (call(), None, "needs cuDNN, which comes with"),
    "old": (call(), TURING, "needs an NVIDIA GPU of compute capability 8.0"),
    "float32": (call(jnp.float32), HOPPER, "float16 or all in bfloat16; got float32"),
    "bias": (call(bias=normal(1, 1, T, T)), HOPPER, "no bias gradient"),
    "mask": (call(mask=jnp.ones((1, 1, T, T), bool)), HOPPER, "no mask that depends on the query"),
    "segments": (call(segment_ids=jnp.ones((B, T), int)), HOPPER, "no segment_ids"),
    "float16 key_bias": (call(jnp.float16, key_bias=normal(B, T, N)), HOPPER, "use bfloat16"),
    "wide on Hopper": (call(head_dim=256), HOPPER, None),
    "wide on Ampere": (call(head_dim=136), AMPERE, "up to 128 on this device; .* need 136"),
}


def install(monkeypatch, capability, tokamax=False):
    """As if cuDNN were found, for a GPU of this capability, unless it is None."""
    monkeypatch.setattr(cudnn, "cudnn_is_installed", lambda: capability is not None)
    monkeypatch.setattr(cudnn, "nvidia_capability", lambda: capability)
    monkeypatch.setattr(attention, "tokamax_is_installed", lambda: tokamax)


@pytest.mark.parametrize("case", LIMITS)
def test_cudnn_limits(case, monkeypatch):
    checked, capability, message = LIMITS[case]
    install(monkeypatch, capability)
    reason = cudnn_cannot(checked)
    if message is None:
        assert reason is None
    else:
        assert re.search(message, reason)


@pytest.mark.skipif(cudnn.cudnn_is_installed(), reason="about a process without cuDNN")
def test_explicit_cudnn_without_cudnn_says_why_not():
    x = normal(B, T, N, H, dtype=jnp.bfloat16)
    with pytest.raises(
        ValueError, match=r"implementation='cudnn' needs cuDNN, .* pip install 'jax\[cuda12\]'"
    ):
        dot_product_attention(x, x, x, implementation="cudnn")


@pytest.mark.parametrize(
    "platform, capability, tokamax, checked, expected",
    [
        ("cpu", HOPPER, False, call(), "xla"),
        ("cpu", HOPPER, True, call(length=1024), "blockwise"),
        ("cuda", HOPPER, False, call(), "cudnn"),
        ("cuda", HOPPER, False, call(jnp.float32), "xla"),
        ("cuda", HOPPER, False, call(jnp.float32, length=8192), "blockwise"),
        ("cuda", None, False, call(), "xla"),
        ("tpu", HOPPER, True, call(), "tokamax"),
        ("tpu", None, True, call(bias=normal(1, 1, T, T)), "xla"),
        ("tpu", None, False, call(), "xla"),
        ("other", HOPPER, True, call(length=1024), "xla"),
    ],
)
def test_choice(platform, capability, tokamax, checked, expected, monkeypatch):
    install(monkeypatch, capability, tokamax)
    assert choose_implementation(checked, platform) == expected


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

    def attend(query, key, value, key_bias=None):
        checked = check_call(query, key, value, key_bias=key_bias, scale=0.5, is_causal=True)
        return checked.merge_heads(tokamax_attention(checked, backend))

    key_bias = (normal(B, T, N),) if with_key_bias else ()
    reference = jax.jit(functools.partial(naive_attention, scale=0.5, is_causal=True))
    assert_matches_reference(attend, reference, (*qkv(), *key_bias))


def test_tokamax_by_name_with_lengths():
    pytest.importorskip("tokamax")
    args = (normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, V))
    options = {"is_causal": True, "key_value_seq_lengths": jnp.asarray([7, 0])}
    got = dot_product_attention(*args, **options, implementation="tokamax")
    np.testing.assert_allclose(got, naive_attention(*args, **options), rtol=1e-5, atol=1e-6)
