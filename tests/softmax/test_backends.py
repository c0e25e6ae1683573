"""Fused kernels on the CPU: the wrapper of cuDNN, splash attention interpreted, the limits and the choice."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.core.call import check_call
from jaxattn.core.padding import zero_padding
from jaxattn.softmax import cudnn, dot_product_attention
from jaxattn.softmax.attention import choose_implementation
from jaxattn.softmax.cudnn import cudnn_attention, cudnn_cannot
from jaxattn.softmax.options import with_options
from jaxattn.softmax.splash import splash_attention, splash_cannot
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


def test_cudnn_wrapper_against_the_definition(monkeypatch):
    """The wrapper's own work (widths, key columns, empty sequences), with XLA standing in for the kernel."""
    fused = jax.nn.dot_product_attention

    def stand_in(query, key, value, *, implementation, **options):
        assert implementation == "cudnn"
        assert query.shape[-1] == key.shape[-1] == value.shape[-1] and value.shape[-1] % 8 == 0
        return fused(query, key, value, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    lengths = jnp.asarray([7, 0])
    args, options = qkv(), {"scale": 0.5, "is_causal": True, "key_value_seq_lengths": lengths}
    for key_bias, window in ((None, None), (normal(B, T, N), None), (normal(1, T, 1), (3, 0)), (None, 2)):
        checked = with_options(check_call(*args, key_bias=key_bias, **options), local_window_size=window)
        got = checked.merge_heads(cudnn_attention(zero_padding(checked)))
        expected = naive_attention(*args, key_bias, local_window_size=window, **options)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


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
    "float16 key_bias": (call(jnp.float16, key_bias=normal(B, T, N)), HOPPER, None),
    "offset": (with_options(call(), query_offset=3), HOPPER, "takes no query_offset"),
    "cap": (with_options(call(), logits_soft_cap=3), HOPPER, "takes no logits_soft_cap"),
    "sinks": (with_options(call(), sinks=jnp.zeros(N)), HOPPER, "takes no sinks"),
    "residual": (with_options(call(), return_residual=True), HOPPER, "takes no return_residual"),
    "window": (with_options(call(), local_window_size=3), HOPPER, None),
    "window of both sides": (
        with_options(call().replace(is_causal=False), local_window_size=3),
        HOPPER,
        "on the left of the diagonal only",
    ),
    "as wide as Hopper takes, and a key_bias": (
        call(head_dim=256, key_bias=normal(B, T, N)),
        HOPPER,
        "up to 256 on this device; .* need 264",
    ),
    "wide on Hopper": (call(head_dim=256), HOPPER, None),
    "wide on Ampere": (call(head_dim=136), AMPERE, "up to 128 on this device; .* need 136"),
}


def install(monkeypatch, capability, alone=False):
    """As if cuDNN were found, for a GPU of this capability, unless it is None; and one TPU."""
    monkeypatch.setattr(cudnn, "cudnn_is_installed", lambda: capability is not None)
    monkeypatch.setattr(cudnn, "nvidia_capability", lambda: capability)
    monkeypatch.setattr("jaxattn.core.pallas.choice.is_alone", lambda x: alone)


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
    "platform, capability, alone, checked, expected",
    [
        ("cpu", HOPPER, False, call(), "xla"),
        ("cpu", HOPPER, True, call(length=1024), "blockwise"),
        ("cuda", HOPPER, False, call(), "cudnn"),
        ("cuda", HOPPER, False, call(jnp.float32), "xla"),
        ("cuda", HOPPER, False, call(jnp.float32, length=8192), "blockwise"),
        ("cuda", None, False, call(), "xla"),
        ("tpu", HOPPER, True, call(length=1024), "splash"),
        ("tpu", None, True, call(), "xla"),
        ("tpu", None, True, call(length=1024, bias=normal(1, 1, 1024, 1024)), "xla"),
        ("tpu", None, False, call(length=1024), "xla"),
        ("other", HOPPER, True, call(length=1024), "xla"),
    ],
)
def test_choice(platform, capability, alone, checked, expected, monkeypatch):
    install(monkeypatch, capability, alone)
    assert choose_implementation(checked, platform) == expected


@pytest.mark.parametrize("change, message", [
    ({"bias": normal(1, 1, T, T)}, "takes no bias"),
    ({"mask": jnp.ones((1, 1, T, T), bool)}, "takes no mask"),
    ({"query_offset": 2, "is_causal": True}, "takes no query_offset"),
    ({"return_residual": True}, "takes no return_residual"),
    ({"logits_soft_cap": 2.0, "key_bias": jnp.zeros((B, T, N))}, "takes no logits_soft_cap beside a key_bias"),
])  # fmt: skip
def test_splash_limits(change, message):
    x = normal(B, T, N, H)
    with pytest.raises(ValueError, match=f"implementation='splash' {message}"):
        dot_product_attention(x, x, x, implementation="splash", **change)


def test_splash_needs_a_key_in_every_window():
    with pytest.raises(ValueError, match="needs a key in the window of every query; got T = 300, S = 11"):
        dot_product_attention(
            normal(B, 300, N, H), *qkv()[1:], local_window_size=(9, 0), implementation="splash"
        )


L = 150
SEGMENTS = jnp.asarray(np.sort(RNG.integers(0, 4, (B, L)), axis=1))
SPLASH = {
    "key bias a query head, lengths": (
        {},
        {"is_causal": True, "key_value_seq_lengths": jnp.asarray([L - 20, 0])},
    ),
    "window, segments, cap, sinks": (
        {"local_window_size": (30, 9), "logits_soft_cap": 2.0},
        {"segment_ids": (SEGMENTS, SEGMENTS.at[0, -9:].add(1))},
    ),
}


@pytest.mark.parametrize("case", SPLASH)
def test_splash(case):
    """The kernel itself, interpreted, with lengths that are padded: values and gradients against float64."""
    own, options = SPLASH[case]
    args = (normal(B, L, N, H), normal(B, L, K, H), normal(B, L, K, H))
    name, last = ("sinks", normal(N)) if own else ("key_bias", 300 * normal(B, L, N).at[0, 3:9].set(-jnp.inf))

    def splash(query, key, value, last):
        last = {name: last}
        checked = check_call(query, key, value, **options, **({} if own else last))
        checked = zero_padding(with_options(checked, **own, **(last if own else {})))
        assert splash_cannot(checked) is None
        return checked.merge_heads(splash_attention(checked, interpret=True))

    reference = lambda q, k, v, x: naive_attention(q, k, v, **{name: x}, **own, **options)  # noqa: E731
    assert_matches_reference(jax.jit(splash), jax.jit(reference), (*args, last), rtol=1e-4, atol=1e-4)
