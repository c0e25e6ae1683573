import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn.lags import cross_correlation_attention_init_state
from jaxattn.softmax import dot_product_attention
from jaxattn.testing import (
    assert_causal,
    assert_decode_matches,
    assert_matches_reference,
    assert_padding_invariant,
)

# Compiled whole: operation by operation the suite would take minutes longer.
cross_correlation = jax.jit(jaxattn.cross_correlation)
cross_correlation_attention = jax.jit(
    jaxattn.cross_correlation_attention, static_argnames=("is_causal", "scale", "implementation")
)
cross_correlation_attention_step = jax.jit(jaxattn.cross_correlation_attention_step, static_argnames="scale")

B, T, N, K, H, V, L = 2, 9, 4, 2, 6, 5, 2
SEGMENTS = jnp.array([[0] * 4 + [1] * 5, [5] * 1 + [7] * 8])


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def qk(dtype=jnp.float32):
    return normal(0, B, T, N, H, dtype=dtype), normal(1, B, T, K, H, dtype=dtype)


def qkv(dtype=jnp.float32):
    return *qk(dtype), normal(2, B, T, K, V, dtype=dtype)


def logits(per_head, lags=L):
    return normal(4, N, 2 * lags + 1) if per_head else normal(4, 2 * lags + 1)


def product(query, key):
    key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
    return jnp.einsum("btnh,bsnh->bnts", query, key)


def naive_scores(query, key, lag_logits, mask=None, segments=None):
    """The definition: a loop over queries, keys and lags."""
    heads, lags = query.shape[2], lag_logits.shape[-1] // 2
    weights = jnp.broadcast_to(jax.nn.softmax(lag_logits), (heads, 2 * lags + 1))
    products = product(query, key)
    if mask is not None:
        products = jnp.where(mask[:, None, :, None] & mask[:, None, None, :], products, 0)
    rows = []
    for i in range(query.shape[1]):
        row = []
        for j in range(key.shape[1]):
            score = jnp.zeros(products.shape[:2], products.dtype)
            for lag in range(-lags, lags + 1):
                a, b = (i, j - lag) if lag >= 0 else (i + lag, j)
                if a < 0 or b < 0:
                    continue
                term = weights[:, lags + lag] * products[:, :, a, b]
                if segments is not None:
                    inside = (segments[:, a] == segments[:, i]) & (segments[:, b] == segments[:, j])
                    term = jnp.where(inside[:, None], term, 0)
                score += term
            row.append(score)
        rows.append(jnp.stack(row, -1))
    return jnp.stack(rows, -2)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.few(1)
def test_scores_and_gradients_match_the_loop(per_head):
    def fn(query, key, lag_logits):
        return product(*cross_correlation(query, key, lag_logits))

    # A short sequence, so that the loop compiles quickly; longer than the lags on either side.
    query, key = (x[:, :5] for x in qk())
    assert_matches_reference(jax.jit(fn), naive_scores, (query, key, logits(per_head)))


@pytest.mark.parametrize("per_head", [False, True])
def test_masked_tokens_and_segments_match_the_loop(per_head):
    query, key = qk()
    mask = jnp.ones((B, T), bool).at[0, 2].set(False).at[1, 5:7].set(False)
    poisoned = [jnp.where(mask[..., None, None], x, jnp.nan) for x in (query, key)]
    scores = product(*cross_correlation(*poisoned, logits(per_head), token_mask=mask, segment_ids=SEGMENTS))
    expected = naive_scores(query, key, logits(per_head), mask, SEGMENTS)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_widths_heads_and_dtypes():
    query, key = qk(jnp.bfloat16)
    wide_query, wide_key = cross_correlation(query, key, logits(False))
    assert wide_query.shape == (B, T, N, 2 * H) and wide_query.dtype == jnp.bfloat16
    assert wide_key.shape == (B, T, K, 2 * H) and wide_key.dtype == jnp.bfloat16
    assert cross_correlation(query, key, logits(True))[1].shape == (B, T, N, 2 * H)


def test_no_lags_is_plain_attention():
    q, k, v = qkv()
    out = cross_correlation_attention(q, k, v, jnp.zeros(1), is_causal=True)
    np.testing.assert_allclose(out, dot_product_attention(q, k, v, is_causal=True), rtol=1e-5, atol=1e-6)


def test_more_lags_than_tokens():
    query, key = (x[:, :3] for x in qk())
    lag_logits = logits(False, lags=6)
    np.testing.assert_allclose(
        product(*cross_correlation(query, key, lag_logits)),
        naive_scores(query, key, lag_logits),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("per_head", [False, True])
def test_attention_matches_softmax_of_the_scores(per_head):
    q, k, v = qkv()
    lag_logits = logits(per_head)
    key_bias, bias = normal(5, B, T, N), normal(6, 1, N, T, T)
    allowed = jnp.tril(jnp.ones((T, T), bool)) & (SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :])
    scores = naive_scores(q, k, lag_logits, segments=SEGMENTS) * H**-0.5
    scores += jnp.moveaxis(key_bias, 1, 2)[:, :, None] + bias
    p = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
    expected = jnp.einsum("bnts,bsnv->btnv", p, jnp.repeat(v, N // K, axis=2))
    out = cross_correlation_attention(
        q, k, v, lag_logits, key_bias=key_bias, bias=bias, is_causal=True, segment_ids=SEGMENTS
    )
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_segments_are_as_if_alone():
    q, k, v = (x[:1] for x in qkv())
    packed = cross_correlation_attention(q, k, v, logits(True), is_causal=True, segment_ids=SEGMENTS[:1])
    for a, b in [(0, 4), (4, T)]:
        alone = cross_correlation_attention(*(x[:, a:b] for x in (q, k, v)), logits(True), is_causal=True)
        np.testing.assert_allclose(packed[:, a:b], alone, rtol=1e-4, atol=1e-5)


def test_attention_is_causal():
    assert_causal(
        jax.jit(lambda q, k, v: cross_correlation_attention(q, k, v, logits(True), is_causal=True)), qkv()
    )


def test_shifting_one_side_both_ways_would_leak():
    """What the docstring says of q_i·k_{j+|l|}: the mask on (i, j) does not help."""

    def both_ways(q, k, v):
        weights = jax.nn.softmax(logits(False))
        shifted = sum(weights[L + lag] * jnp.roll(k, lag, axis=1) for lag in range(-L, L + 1))
        return dot_product_attention(q, shifted, v, is_causal=True)

    with pytest.raises(AssertionError, match=r"not causal.*\(k\)"):
        assert_causal(jax.jit(both_ways), qkv())


def test_padding_reaches_nothing():
    def fn(q, k, v, mask):
        return cross_correlation_attention(q, k, v, logits(True), token_mask=mask)

    assert_padding_invariant(jax.jit(fn), qkv())


def test_a_removed_key_reaches_nothing():
    q, k, v = qkv()
    keep = jnp.ones((B, T), bool).at[0, 3].set(False)
    key_bias = jnp.where(keep, 0.0, -jnp.inf)[..., None]
    k, v = (jnp.where(keep[..., None, None], x, jnp.nan) for x in (k, v))
    by_bias = cross_correlation_attention(q, k, v, logits(False), key_bias=key_bias)
    by_mask = cross_correlation_attention(q, k, v, logits(False), token_mask=(None, keep))
    assert np.isfinite(by_bias).all()
    np.testing.assert_array_equal(by_bias, by_mask)
    none_left = cross_correlation_attention(
        q, k, v, logits(False), token_mask=(None, jnp.zeros((B, T), bool))
    )
    np.testing.assert_array_equal(none_left, 0)


def test_cross_attention_shifts_each_side_on_its_own():
    q, k, v = qkv()
    q = q[:, :4]
    scores = naive_scores(q, k, logits(True)) * H**-0.5
    expected = jnp.einsum("bnts,bsnv->btnv", jax.nn.softmax(scores), jnp.repeat(v, N // K, axis=2))
    masks = (jnp.ones((B, 4), bool), jnp.ones((B, T), bool))
    out = cross_correlation_attention(q, k, v, logits(True), token_mask=masks)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_to_float64():
    def reference(q, k, v, lag_logits):
        allowed = jnp.tril(jnp.ones((5, 5), bool))
        scores = naive_scores(q, k, lag_logits) / jnp.sqrt(H)
        p = jax.nn.softmax(jnp.where(allowed, scores, -1e30))
        return jnp.einsum("bnts,bsnv->btnv", p, jnp.repeat(v, N // K, axis=2))

    fn = jax.jit(functools.partial(cross_correlation_attention, is_causal=True))
    args = (*(x[:, :5] for x in qkv(jnp.bfloat16)), logits(False))
    assert fn(*args).dtype == jnp.bfloat16
    assert_matches_reference(fn, reference, args, rtol=4e-2)


def test_unbatched_and_vmap():
    fn = functools.partial(cross_correlation_attention, lag_logits=logits(True), is_causal=True)
    args = qkv()
    batched = fn(*args)
    np.testing.assert_allclose(fn(*(x[0] for x in args)), batched[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(fn)(*args), batched, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_head", [False, True])
def test_decoding_equals_the_whole_pass(per_head):
    mask = jnp.ones((B, T), bool).at[1, :2].set(False).at[0, 4].set(False)
    poison = jnp.where(mask, 0, jnp.nan)[..., None, None]
    q, k, v = (x + poison for x in qkv())
    fn = functools.partial(cross_correlation_attention, lag_logits=logits(per_head), is_causal=True)
    step = functools.partial(cross_correlation_attention_step, lag_logits=logits(per_head))

    # A masked query gives NaN by its own poison on both sides: only the others are compared.
    def valid(out, mask):
        return jnp.where(mask[..., None, None], out, 0)

    def valid_step(state, q, k, v, mask):
        state, out = step(state, q, k, v, token_mask=mask)
        return state, valid(out, mask)

    assert_decode_matches(
        jax.jit(lambda q, k, v, mask: valid(fn(q, k, v, token_mask=mask), mask)),
        lambda: cross_correlation_attention_init_state(
            B, T, K, H, logits(per_head), num_heads=N, value_dim=V
        ),
        jax.jit(valid_step),
        (q, k, v, mask),
        prefill=4,
    )


def test_bad_arguments_are_refused(no_typecheck):
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"lag_logits must have shape .*\(4,\)"):
        cross_correlation(q, k, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"lag_logits must have shape .*N = 4.*\(3, 5\)"):
        cross_correlation(q, k, jnp.zeros((3, 5)))
    with pytest.raises(ValueError, match="multiple of key's heads"):
        cross_correlation(q[:, :, :3], k, jnp.zeros(5))
    with pytest.raises(ValueError, match="query must have shape"):
        cross_correlation(q[0, 0], k, jnp.zeros(5))
    with pytest.raises(ValueError, match="key must have shape"):
        cross_correlation(q, k[..., :2], jnp.zeros(5))
    with pytest.raises(ValueError, match="token_mask must be a pair"):
        cross_correlation(q[:, :3], k, jnp.zeros(5), token_mask=jnp.ones((B, T), bool))
    with pytest.raises(ValueError, match="segment_ids must be one array or a pair"):
        cross_correlation(q, k, jnp.zeros(5), segment_ids=(SEGMENTS,) * 3)
    with pytest.raises(ValueError, match="token_mask must be boolean"):
        cross_correlation(q, k, jnp.zeros(5), token_mask=jnp.ones((B, T)))
    with pytest.raises(ValueError, match="key_bias must be broadcastable"):
        cross_correlation_attention(q, k, v, jnp.zeros(5), key_bias=jnp.zeros((B, T, 3)))
    with pytest.raises(ValueError, match="lag_logits must have shape"):
        cross_correlation_attention_init_state(B, T, K, H, jnp.zeros(4), num_heads=N)
    with pytest.raises(ValueError, match="num_heads must be a multiple"):
        cross_correlation_attention_init_state(B, T, 3, H, jnp.zeros(5), num_heads=N)
    state = cross_correlation_attention_init_state(B, T, K, H, jnp.zeros((N, 5)), num_heads=N, value_dim=V)
    with pytest.raises(ValueError, match="made for, 2L \\+ 1 = 5 lags"):
        cross_correlation_attention_step(state, q, k, v, jnp.zeros((N, 3)))
    with pytest.raises(ValueError, match="a cache of 4 heads"):
        cross_correlation_attention_step(state, q, k, v, jnp.zeros(5))
