"""The blockwise path: any block size gives the same numbers, and no array grows like T×S."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn.softmax.blockwise as blockwise_module
from jaxattn.core.call import check_call
from jaxattn.softmax import dot_product_attention
from jaxattn.softmax.blocks import block_size
from jaxattn.softmax.blockwise import blockwise_attention
from jaxattn.softmax.options import with_options
from jaxattn.softmax.xla import xla_attention

B, T, S, N, K, H = 2, 45, 61, 4, 2, 8
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


OWN_OPTIONS = ("query_offset", "local_window_size", "logits_soft_cap")


def call(query, key, value, key_bias=None, bias=None, sinks=None, **options):
    own = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
    checked = check_call(query, key, value, key_bias=key_bias, bias=bias, scale=0.4, **options)
    return with_options(checked, sinks=sinks, return_residual=True, **own)


SEGMENTS = jnp.asarray(np.sort(RNG.integers(0, 4, (B, S)), axis=1))
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask and segments": {
        "mask": jnp.asarray(RNG.random((B, 1, T, S)) < 0.7),
        "segment_ids": (SEGMENTS[:, :T], SEGMENTS),
    },
    "window": {"local_window_size": (10, 5)},
    "window a row": {"local_window_size": (30, 2), "is_causal": True, "query_offset": jnp.asarray([3, 16])},
    "window beyond the keys": {"local_window_size": 4, "query_offset": jnp.asarray([-50, 70])},
    "offset": {"is_causal": True, "query_offset": jnp.int32(9)},
    "cap and sinks": {"logits_soft_cap": 0.9, "local_window_size": (20, 0)},
    "offset before the keys": {"is_causal": True, "query_offset": jnp.int32(-20)},
    "offset beyond the keys": {"is_causal": True, "query_offset": jnp.int32(200)},
}


def outputs_and_gradients(attention, options, args):
    def loss(*args):
        out, log_total = attention(call(*args, **options))
        seen = jnp.where(log_total > -jnp.inf, log_total, 0)
        return jnp.sin(out).sum() + (seen**2).sum(), (out, log_total)

    (_, outs), grads = jax.jit(jax.value_and_grad(loss, range(len(args)), has_aux=True))(*args)
    return *outs, *grads


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("blocks", [(16, 8), (16, 64)])
@pytest.mark.few(3)
def test_block_sizes_do_not_matter(options, blocks):
    args = (normal(B, T, N, H), normal(B, S, K, H), normal(B, S, K, 5), normal(B, S, N), normal(1, N, T, S))
    args += (normal(N),) if options == "cap and sinks" else ()
    blockwise = functools.partial(blockwise_attention, query_block=blocks[0], key_block=blocks[1])
    got = outputs_and_gradients(blockwise, OPTIONS[options], args)
    expected = outputs_and_gradients(xla_attention, OPTIONS[options], args)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("options, forward, backward", [
    ({}, 16, 16),
    ({"is_causal": True}, 10, 10),
    ({"local_window_size": (9, 0)}, 7, 7),
    ({"local_window_size": 20}, 14, 14),
    ({"local_window_size": (9, 0), "query_offset": jnp.asarray([-16, 0])}, 9, 9),
    ({"local_window_size": 0, "query_offset": jnp.asarray([99, 150])}, 0, 0),
])  # fmt: skip
@pytest.mark.few(3)
def test_dead_blocks_are_not_visited(monkeypatch, options, forward, backward):
    """Of the 4 × 4 tiles of 16 queries and 16 keys only those that hold an allowed pair are computed."""
    visited = {False: 0, True: 0}
    compute = blockwise_module.block_products

    def counted(*args, keys_first=False):
        jax.debug.callback(lambda: visited.__setitem__(keys_first, visited[keys_first] + 1))
        return compute(*args, keys_first=keys_first)

    monkeypatch.setattr(blockwise_module, "block_products", counted)
    monkeypatch.setattr(blockwise_module, "_attend_compiled", blockwise_module._attend)
    x = normal(B, 64, 2, H)

    def loss(x):
        return blockwise_attention(call(x, x, x, **options), query_block=16, key_block=16)[0].sum()

    jax.block_until_ready(jax.grad(loss)(x))
    jax.effects_barrier()
    assert visited == {False: forward, True: backward}


def test_vmap_over_offsets():
    query, key, value = normal(B, T, N, H), normal(B, S, K, H), normal(B, S, K, 5)

    def run(attention, offset):
        return attention(call(query, key, value, is_causal=True, query_offset=offset))[0]

    offsets = jnp.asarray([0, 5, 70], jnp.int32)
    blockwise = functools.partial(blockwise_attention, query_block=16, key_block=8)
    got = jax.vmap(functools.partial(run, blockwise))(offsets)
    np.testing.assert_allclose(got, jax.vmap(functools.partial(run, xla_attention))(offsets), atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 255, 256, 257, 1000, 4096])
def test_block_size_pads_little(length):
    block = block_size(length, 256)
    count = -(-length // block)
    assert block <= 256
    assert count * block - length < 8 * count


def _compiled(length, heads=1, options=()):
    x = jax.ShapeDtypeStruct((1, length, heads, 16), jnp.float32)
    key_bias = jax.ShapeDtypeStruct((1, length, heads), jnp.float32)

    def loss(query, key, value, key_bias):
        out = dot_product_attention(
            query, key, value, key_bias=key_bias, is_causal=True, implementation="blockwise", **dict(options)
        )
        return (out**2).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(x, x, x, key_bias).compile()


def test_memory_grows_linearly_forward_and_backward():
    sizes = [_compiled(length).memory_analysis().temp_size_in_bytes for length in (2048, 4096, 8192)]
    # Linear plus a constant for the blocks: doubling the length less than doubles it, give or take rounding.
    assert sizes[1] < 2.1 * sizes[0] and sizes[2] < 2.1 * sizes[1], sizes


def test_no_scores_at_32k():
    length, heads = 32768, 2
    compiled = _compiled(length, heads)
    assert compiled.memory_analysis().temp_size_in_bytes < length * length * 4 / 8
    assert f"{length},{length}" not in compiled.as_text()
