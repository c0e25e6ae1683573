"""A cached step at a time equals attention over the whole sequence."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxattn.softmax import (
    DotProductAttentionState,
    dot_product_attention,
    dot_product_attention_init_state,
    dot_product_attention_step,
)
from tests.reference import naive_attention

B, T, N, K, H, V = 2, 12, 4, 2, 8, 6
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


QUERY, KEY, VALUE, KEY_BIAS = normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, V), normal(B, T, N)


def empty(max_length=16, **options):
    return dot_product_attention_init_state(B, max_length, K, H, num_heads=N, value_dim=V, **options)


def decode(state, arrays, key_bias, counts, **options):
    step = jax.jit(lambda *a, key_bias: dot_product_attention_step(*a, key_bias=key_bias, **options))
    outs, start = [], 0
    for count in counts:
        part = slice(start, start + count)
        new = (x[:, part] for x in arrays)
        state, out = step(state, *new, key_bias=None if key_bias is None else key_bias[:, part])
        outs.append(out)
        start += count
    return state, jnp.concatenate(outs, axis=1)


@pytest.mark.parametrize("counts", [[1] * T, [7, 1, 1, 3], [T]])
@pytest.mark.parametrize("key_bias", [None, KEY_BIAS, KEY_BIAS[:1, :, :1]])
@pytest.mark.few(4)
def test_steps_equal_the_whole(counts, key_bias):
    arrays = (QUERY, KEY, VALUE)
    state, out = decode(empty(), arrays, key_bias, counts, scale=0.3)
    expected = dot_product_attention(*arrays, key_bias=key_bias, scale=0.3, is_causal=True)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert state.length.tolist() == [T] * B


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.few(1)
def test_a_cache_cut_among_devices(devices):
    """Prompts of different lengths, then a token a call, over every cut: outputs, states and gradients.

    The first head has no sink, its first query no key, and the second sequence scores whose exponentials overflow.
    """
    sinks, prompt, lengths = jnp.array([-jnp.inf, 1.0, 2.0, 3.0]), 10, jnp.array([10, 3])
    key_bias = KEY_BIAS.at[:, jnp.array([0, 2])].set(-jnp.inf).at[1].add(100.0)
    mesh = jax.make_mesh((devices,), ("sequence",), axis_types=(AxisType.Auto,))
    cut = P(None, "sequence")
    states = DotProductAttentionState(cut, cut, cut, P())

    def decode_all(step, state, arrays):
        outs = []
        for i in (0, *range(prompt, T)):
            part = slice(0, prompt) if i == 0 else slice(i, i + 1)
            new = [x[:, part] for x in arrays]
            state, out = step(state, *new, lengths if i == 0 else jnp.ones(B, int))
            outs.append(out)
        return jnp.concatenate(outs, axis=1), state

    def compared(axis_name):
        def step(state, query, key, value, key_bias, lengths):
            options = {"sinks": sinks, "local_window_size": 9, "logits_soft_cap": 5.0, "axis_name": axis_name}
            return dot_product_attention_step(
                state, query, key, value, key_bias=key_bias, query_seq_lengths=lengths, **options
            )

        if axis_name is not None:
            step = jax.shard_map(
                step, mesh=mesh, in_specs=(states, P(), P(), P(), P(), P()), out_specs=(states, P())
            )

        def loss(arrays):
            out, state = decode_all(step, empty(), arrays)
            return (jnp.cos(out) * jnp.arange(1.0 * V)).sum(), (out, state)

        return jax.jit(jax.grad(loss, has_aux=True))((QUERY, KEY, VALUE, key_bias))

    chex.assert_trees_all_close(compared("sequence"), compared(None), rtol=1e-5, atol=1e-5)


def test_a_long_prompt_whose_code_differs_between_platforms():
    x = jax.ShapeDtypeStruct((1, 128, K, H), jnp.float32)
    state = jax.eval_shape(lambda: dot_product_attention_init_state(1, 128, K, H))
    assert jax.eval_shape(dot_product_attention_step, state, x, x, x)[1].shape == x.shape


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_different_lengths(side):
    """Padded with NaN on either side, then decoded on: each sequence as if it were alone."""
    prompt, lengths = 8, (3, 6)
    position = jnp.arange(prompt)
    valid = jnp.stack([position >= prompt - n if side == "left" else position < n for n in lengths])
    valid = jnp.concatenate([valid, jnp.ones((B, T - prompt), bool)], axis=1)
    key, value = (jnp.where(valid[:, :, None, None], x, jnp.nan) for x in (KEY, VALUE))
    key_bias = jnp.where(valid, 0.0, -jnp.inf)[:, :, None]
    _, out = decode(empty(), (QUERY, key, value), key_bias, [prompt, *[1] * (T - prompt)])
    for b in range(B):
        keep = np.flatnonzero(valid[b])
        alone = dot_product_attention(QUERY[b, keep], KEY[b, keep], VALUE[b, keep], is_causal=True)
        np.testing.assert_allclose(out[b, keep], alone, rtol=1e-5, atol=1e-6)


def test_writing_past_the_end_gives_nan():
    arrays = (QUERY, KEY, VALUE)
    _, out = decode(empty(max_length=10), arrays, None, [8, 2, 1, 1])
    assert np.isfinite(out[:, :10]).all() and np.isnan(out[:, 10:]).all()


def test_state_is_a_pytree_of_fixed_shapes():
    state = empty()
    new, _ = dot_product_attention_step(state, QUERY, KEY, VALUE)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)

    def body(state, arrays):
        return dot_product_attention_step(state, *arrays)

    arrays = tuple(jnp.moveaxis(x, 1, 0)[:, :, None] for x in (QUERY, KEY, VALUE))
    _, out = jax.lax.scan(body, state, arrays)
    expected = dot_product_attention(QUERY, KEY, VALUE, is_causal=True)
    np.testing.assert_allclose(jnp.moveaxis(out[:, :, 0], 0, 1), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_cache():
    arrays = tuple(x.astype(jnp.bfloat16) for x in (QUERY, KEY, VALUE))
    state, out = decode(empty(dtype=jnp.bfloat16), arrays, KEY_BIAS, [5, *[1] * 7])
    assert out.dtype == state.key.dtype == jnp.bfloat16 and state.key_bias.dtype == jnp.float32
    expected = dot_product_attention(QUERY, KEY, VALUE, key_bias=KEY_BIAS, is_causal=True)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=3e-2, atol=3e-2)


def test_vmap():
    stack = lambda x: jnp.stack([x, x[::-1]])  # noqa: E731
    arrays = tuple(map(stack, (QUERY, KEY, VALUE)))
    state = jax.tree.map(lambda x: jnp.stack([x, x]), empty())
    _, out = jax.vmap(dot_product_attention_step)(state, *arrays)
    expected = dot_product_attention(QUERY, KEY, VALUE, is_causal=True)
    np.testing.assert_allclose(out, stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"max_length": 0}, "max_length must be at least 1; got 0"),
        ({"num_heads": 3}, "num_heads must be a multiple of num_kv_heads = 2; got 3"),
    ],
)
def test_bad_state(no_typecheck, change, message):
    options = {"batch": B, "max_length": 4, "num_kv_heads": K, "head_dim": H, "num_heads": N}
    with pytest.raises(ValueError, match=message):
        dot_product_attention_init_state(**(options | change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"query": QUERY[0]}, r"query must have shape \(B, T, N, H\)"),
        ({"query": QUERY[:1], "key": KEY[:1], "value": VALUE[:1]}, "query must have the state's batch"),
        ({"query": QUERY[:, :, :2]}, "query must have the heads of the state's key bias, N = 4; got 2"),
        ({"query": QUERY[..., :4], "key": KEY[..., :4]}, "key must have shape"),
        ({"value": VALUE[..., :4]}, "value must have shape"),
        ({"key_bias": KEY_BIAS[:, :, :3]}, r"key_bias must be broadcastable to \(B, S, N\)"),
        ({"key_bias": KEY_BIAS > 0}, "key_bias must be floating point"),
        ({"query": QUERY[:, :0], "key": KEY[:, :0], "value": VALUE[:, :0]}, "query must hold at least 1 new token"),
        (dict(zip(("query", "key", "value"), (jnp.tile(x, (1, 2, 1, 1)) for x in (QUERY, KEY, VALUE)),
                  strict=True)), "query must hold 1 to max_length = 16 new tokens; got 24"),
    ],
)  # fmt: skip
def test_bad_step(no_typecheck, change, message):
    with pytest.raises(ValueError, match=message):
        dot_product_attention_step(empty(), **({"query": QUERY, "key": KEY, "value": VALUE} | change))


@pytest.mark.parametrize("window", [4, (2, 0)])
def test_local_window(window):
    arrays = (QUERY, KEY, VALUE)
    _, out = decode(empty(), arrays, KEY_BIAS, [5, 1, 6], local_window_size=window)
    options = {"is_causal": True, "local_window_size": window}
    np.testing.assert_allclose(out, naive_attention(*arrays, KEY_BIAS, **options), rtol=1e-5, atol=1e-6)


def test_cap_and_sinks():
    arrays = (QUERY, KEY, VALUE)
    options = {"logits_soft_cap": 1.5, "sinks": normal(N)}
    _, out = decode(empty(), arrays, KEY_BIAS, [5, 1, 6], **options)
    expected = naive_attention(*arrays, KEY_BIAS, is_causal=True, **options)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
