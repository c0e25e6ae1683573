"""dot_product_attention against its definition, for every option, on the two paths that run everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.softmax import dot_product_attention
from jaxattn.testing import assert_matches_reference
from tests.reference import naive_attention

IMPLEMENTATIONS = ("xla", "blockwise")
B, T, S, N, K, H, V = 2, 13, 17, 4, 2, 8, 6
RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0, dtype=jnp.float32):
    return jnp.asarray(scale * RNG.standard_normal(shape), dtype)


def qkv(length=T, key_length=S, kv_heads=K, dtype=jnp.float32):
    return (
        normal(B, length, N, H, dtype=dtype),
        normal(B, key_length, kv_heads, H, dtype=dtype),
        normal(B, key_length, kv_heads, V, dtype=dtype),
    )


def padding(*lengths):
    return jnp.where(jnp.arange(S) < jnp.asarray(lengths)[:, None], 0.0, -jnp.inf)[:, :, None]


SEGMENTS = jnp.asarray(np.sort(RNG.integers(0, 3, (B, S)), axis=1))
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.7},
    "scale zero": {"scale": 0.0},
    "mask": {"mask": jnp.asarray(RNG.random((B, N, T, S)) < 0.6)},
    "mask over heads": {"mask": jnp.asarray(RNG.random((B, 1, T, S)) < 0.6), "is_causal": True},
    "mask of keys": {"mask": jnp.asarray(RNG.random((B, 1, 1, S)) < 0.6)},
    "mask of keys a head": {"mask": jnp.asarray(RNG.random((1, N, 1, S)) < 0.6)},
    "mask of queries": {"mask": jnp.asarray(RNG.random((B, 1, T, 1)) < 0.6)},
    "mask of nothing": {"mask": jnp.zeros((1, 1, 1, 1), bool)},
    "lengths": {"query_seq_lengths": jnp.asarray([5, T]), "key_value_seq_lengths": jnp.asarray([S, 3])},
    "lengths, causal": {"key_value_seq_lengths": jnp.asarray([9, 0]), "is_causal": True},
    "segments": {"segment_ids": (SEGMENTS[:, :T], SEGMENTS), "is_causal": True},
    "segments without keys": {"segment_ids": (SEGMENTS[:, :T] + 1, SEGMENTS)},
    "cap": {"logits_soft_cap": 0.8, "is_causal": True},
    "window of the left": {"local_window_size": (4, 0)},
    "window of the right, causal": {"local_window_size": (2, 5), "is_causal": True},
    "window of two": {"local_window_size": (0, 1)},
    "window of all": {"local_window_size": 2**40},
    "offset a row": {"is_causal": True, "query_offset": jnp.asarray([0, 4])},
    "offset beyond the keys": {"local_window_size": (2, 1), "query_offset": jnp.asarray([S, -T - 1])},
    "everything": {
        "is_causal": True,
        "local_window_size": (9, 2),
        "query_offset": jnp.asarray([3, 1]),
        "scale": 0.3,
        "mask": jnp.asarray(RNG.random((1, N, T, S)) < 0.8),
        "segment_ids": (SEGMENTS[:, :T], SEGMENTS),
        "query_seq_lengths": jnp.asarray([11, 6]),
        "key_value_seq_lengths": jnp.asarray([15, 8]),
    },
}


@pytest.fixture(params=IMPLEMENTATIONS)
def attention(request):
    """Compiled whole: operation by operation the suite would take minutes longer."""
    return jax.jit(
        functools.partial(dot_product_attention, implementation=request.param),
        static_argnames=("is_causal", "scale", "local_window_size", "logits_soft_cap", "return_residual"),
    )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.few(5)
def test_options(attention, options):
    options = OPTIONS[options]
    key_bias = normal(B, S, N)
    assert_matches_reference(
        jax.jit(lambda q, k, v, b: attention(q, k, v, key_bias=b, **options)),
        lambda q, k, v, b: naive_attention(q, k, v, b, **options),
        (*qkv(), key_bias),
    )


SINK_OPTIONS = {
    "plain": {},
    "causal window and cap": {"is_causal": True, "local_window_size": (3, 0), "logits_soft_cap": 1.5},
    "rows without keys": {
        "key_value_seq_lengths": jnp.asarray([5, 0]),
        "query_seq_lengths": jnp.asarray([T, 9]),
        "segment_ids": (SEGMENTS[:, :T] + 1, SEGMENTS),
    },
}


@pytest.mark.parametrize("options", SINK_OPTIONS)
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.few(5)
def test_sinks_and_log_sum_exp(attention, options, with_sinks):
    """Values, and gradients through both results; rows without keys stay finite."""
    options = SINK_OPTIONS[options]

    def seen(call):
        def run(q, k, v, b, *sinks):
            sinks = sinks[0] if sinks else None
            out, log_total = call(q, k, v, key_bias=b, sinks=sinks, return_residual=True, **options)
            valid = jnp.arange(T) < options.get("query_seq_lengths", jnp.asarray([T, T]))[:, None]
            seen = jnp.where(valid[..., None] & (log_total > -jnp.inf), log_total, -1.0)
            return jnp.concatenate([out, seen[..., None]], axis=-1)

        return run

    args = (*qkv(), normal(B, S, N), *((normal(N),) if with_sinks else ()))
    assert_matches_reference(jax.jit(seen(attention)), seen(naive_attention), args, atol=1e-5)
    out, log_total = attention(*args[:3], return_residual=True, **options)
    assert log_total.dtype == jnp.float32
    np.testing.assert_array_equal((log_total == -jnp.inf)[..., None], (out == 0).all(axis=-1, keepdims=True))


def test_log_sum_exp_without_values_or_keys(attention):
    """It needs no values; padded queries have none, with keys or without."""
    query, key, value = qkv()
    options = {"query_seq_lengths": jnp.asarray([T, 9]), "sinks": normal(N), "return_residual": True}
    whole = attention(query, key, value, **options)[1]
    np.testing.assert_allclose(attention(query, key, value[..., :0], **options)[1], whole, rtol=1e-6)
    alone = attention(query, key[:, :0], value[:, :0], **options)[1]
    valid = jnp.arange(T) < options["query_seq_lengths"][:, None]
    np.testing.assert_allclose(alone, jnp.where(valid[..., None], options["sinks"], -jnp.inf))


def test_log_sum_exp_joins_attention_over_parts(attention):
    query, key, value = qkv()
    first, second = (attention(query, key[:, part], value[:, part], return_residual=True) for part in PARTS)
    total = jnp.logaddexp(first[1], second[1])
    joined = sum(out * jnp.exp(part - total)[..., None] for out, part in (first, second))
    np.testing.assert_allclose(joined, attention(query, key, value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [-jnp.inf, 1e4])
def test_sinks_without_weight_and_with_all_of_it(attention, size):
    query, key, value = qkv()
    out, vjp = jax.vjp(lambda q, s: attention(q, key, value, sinks=s), query, jnp.full(N, size))
    expected = attention(query, key, value) if size < 0 else jnp.zeros_like(out)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert all(np.isfinite(g).all() for g in vjp(jnp.ones_like(out)))


@pytest.mark.parametrize("shape", [(1, S, N), (B, S, 1)])
def test_key_bias_broadcasts(attention, shape):
    key_bias = normal(*shape).at[0, 3:5].set(-jnp.inf)
    assert_matches_reference(
        jax.jit(lambda q, k, v, b: attention(q, k, v, key_bias=b)), naive_attention, (*qkv(), key_bias)
    )


@pytest.mark.parametrize("shape", [(B, N, T, S), (1, 1, T, S), (B, N, 1, S), (1, N, T, 1)])
@pytest.mark.few(3)
def test_bias_broadcasts(attention, shape):
    assert_matches_reference(
        jax.jit(lambda q, k, v, b: attention(q, k, v, bias=b, is_causal=True)),
        lambda q, k, v, b: naive_attention(q, k, v, bias=b, is_causal=True),
        (*qkv(), normal(*shape)),
        atol=1e-5,
    )


def test_bias_of_minus_infinity_masks(attention):
    bias = jnp.where(jnp.asarray(RNG.random((B, N, T, S)) < 0.5), 0.0, -jnp.inf).at[:, :, 2].set(-jnp.inf)
    assert_matches_reference(
        lambda q, k, v: attention(q, k, v, bias=bias),
        lambda q, k, v: naive_attention(q, k, v, bias=bias),
        qkv(),
    )


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_grouped_queries(attention, kv_heads):
    args = (*qkv(kv_heads=kv_heads), normal(B, S, N))
    assert_matches_reference(
        jax.jit(lambda q, k, v, b: attention(q, k, v, key_bias=b, is_causal=True)),
        functools.partial(naive_attention, is_causal=True),
        args,
    )


@pytest.mark.parametrize("length, key_length", [(1, S), (T, 1), (1, 1)])
@pytest.mark.few(3)
def test_short_lengths(attention, length, key_length):
    assert_matches_reference(
        jax.jit(lambda q, k, v: attention(q, k, v, is_causal=True)),
        functools.partial(naive_attention, is_causal=True),
        qkv(length, key_length),
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [50.0, 1e4])
def test_large_logits(attention, size):
    query, key, value = qkv()
    query, key = (x / jnp.abs(x).max() * (size / H**0.5) ** 0.5 * 2 for x in (query, key))
    assert_matches_reference(
        jax.jit(lambda v, b: attention(query, key, v, key_bias=b, scale=1.0)),
        lambda v, b: naive_attention(query.astype(v.dtype), key.astype(v.dtype), v, b, scale=1.0),
        (value, normal(B, S, N, scale=size)),
        # A float32 score of this size is itself off by size·2⁻²⁴.
        rtol=1e-6 * size,
        atol=1e-6 * size,
    )


def test_bfloat16(attention):
    args = (*qkv(dtype=jnp.bfloat16), normal(B, S, N))
    out = attention(*args[:3], key_bias=args[3])
    assert out.dtype == jnp.bfloat16
    options = {"local_window_size": (6, 2), "logits_soft_cap": 2.0}
    assert_matches_reference(
        jax.jit(lambda q, k, v, b, s: attention(q, k, v, key_bias=b, sinks=s, **options)),
        lambda q, k, v, b, s: naive_attention(q, k, v, b, sinks=s, **options),
        (*args, normal(N)),
    )


def test_float64(attention):
    with jax.enable_x64(True):
        args = [jnp.asarray(np.asarray(x), jnp.float64) for x in (*qkv(), normal(B, S, N))]
        out = attention(*args[:3], key_bias=args[3], is_causal=True)
        expected = naive_attention(*args, is_causal=True)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-13)


PARTS = slice(0, 6), slice(6, S)
POISONED = {
    "key_bias": lambda k: {"key_bias": padding(4, 11)},
    "key_bias of all heads": lambda k: {"key_bias": jnp.broadcast_to(padding(4, 11), (B, S, N))},
    "mask": lambda k: {"mask": jnp.moveaxis(padding(4, 11) == 0, 2, 1)[:, :, None]},
    "lengths": lambda k: {"key_value_seq_lengths": jnp.asarray([4, 11])},
    "lengths and NaN key_bias": lambda k: {
        "key_value_seq_lengths": jnp.asarray([4, 11]),
        "key_bias": jnp.where(padding(4, 11) == 0, 0.5, jnp.nan),
    },
}


@pytest.mark.parametrize("how", POISONED)
@pytest.mark.few(4)
def test_padding_reaches_neither_outputs_nor_gradients(attention, how):
    query, key, value = qkv()
    valid = padding(4, 11)[..., None] == 0
    row = (jnp.arange(T) < jnp.asarray([6, 2])[:, None])[:, :, None, None]
    options = dict(POISONED[how](key), is_causal=True, query_seq_lengths=jnp.asarray([6, 2]))

    def loss(query, key, value):
        out = attention(query, key, value, **options)
        return (jnp.sin(out) * jnp.arange(V)).sum(), out

    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))

    def run(fill):
        args = (jnp.where(row, query, fill), jnp.where(valid, key, fill), jnp.where(valid, value, fill))
        return step(*args)

    ((_, clean), clean_grads), ((_, dirty), dirty_grads) = run(0.0), run(jnp.nan)
    np.testing.assert_array_equal(dirty, clean)
    for clean_grad, dirty_grad in zip(clean_grads, dirty_grads, strict=True):
        np.testing.assert_array_equal(dirty_grad, clean_grad)
        assert np.isfinite(dirty_grad).all()
    assert (dirty[0, 6:] == 0).all() and (dirty[1, 2:] == 0).all()


def test_agrees_with_jax_nn(attention):
    query, key, _ = qkv()
    mask = OPTIONS["mask"]["mask"].at[..., 0].set(True)
    bias = normal(B, N, T, S)
    expected = jax.nn.dot_product_attention(query, key, key, bias, mask, scale=0.4, is_causal=True)
    got = attention(query, key, key, bias=bias, mask=mask, scale=0.4, is_causal=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [3, (2, 0), (1, 4)])
def test_windows_are_those_of_jax_nn(attention, window):
    query, key, _ = qkv()
    expected = jax.nn.dot_product_attention(query, key, key, local_window_size=window)
    got = attention(query, key, key, local_window_size=window)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_unbatched(attention):
    query, key, value = qkv()
    batched = {
        "key_bias": normal(B, S, N),
        "mask": OPTIONS["mask"]["mask"],
        "bias": normal(B, N, T, S),
        "query_seq_lengths": jnp.asarray([5, T]),
        "key_value_seq_lengths": jnp.asarray([S, 3]),
        "segment_ids": (SEGMENTS[:, :T], SEGMENTS),
        "query_offset": jnp.asarray([2, 0]),
    }
    expected = attention(query, key, value, is_causal=True, **batched)
    for b in range(B):
        single = jax.tree.map(lambda x, b=b: x[b], batched)
        got = attention(query[b], key[b], value[b], is_causal=True, **single)
        np.testing.assert_allclose(got, expected[b], rtol=1e-5, atol=1e-6)


def test_vmap(attention):
    query, key, value = qkv()
    key_bias, bias = normal(B, S, N), normal(B, N, T, S)
    fn = functools.partial(attention, is_causal=True)

    def grads(query, key, value, key_bias, bias):
        return jax.grad(lambda *a: jnp.sin(fn(*a[:3], key_bias=a[3], bias=a[4])).sum(), (0, 1, 2, 3, 4))(
            query, key, value, key_bias, bias
        )

    args = (query, key, value, key_bias, bias)
    for got, expected in zip(jax.jit(jax.vmap(grads))(*args), jax.jit(grads)(*args), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_higher_derivatives_of_xla():
    x = normal(1, 5, 1, 4)
    key_bias = normal(1, 5, 1)
    fn = lambda b: dot_product_attention(x, x, x, key_bias=b, implementation="xla").sum()  # noqa: E731
    assert np.isfinite(jax.jit(jax.hessian(fn))(key_bias)).all()
