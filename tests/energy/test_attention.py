import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn.energy import energy_gated_attention_init_state
from jaxattn.energy.prefix import attend_to_prefixes
from jaxattn.energy.statistics import prefix_statistics
from jaxattn.softmax import dot_product_attention
from jaxattn.testing import (
    assert_causal,
    assert_decode_matches,
    assert_matches_reference,
    assert_padding_invariant,
)
from tests.energy.naive import (
    ALPHA,
    NORMALIZATIONS,
    TAU,
    B,
    H,
    K,
    N,
    T,
    V,
    energy_gate,
    energy_gated_attention,
    energy_gated_attention_step,
    naive_attention,
    normal,
    qkve,
)


@pytest.mark.parametrize(
    ("normalization", "is_causal"),
    [
        *((name, True) for name in NORMALIZATIONS),
        *((name, False) for name in NORMALIZATIONS if name != "prefix"),
    ],
)
@pytest.mark.few(2)
def test_attention_matches_the_published_form(normalization, is_causal):
    def fn(q, k, v, energy, alpha, tau):
        return energy_gated_attention(
            q,
            k,
            v,
            energy,
            alpha=alpha,
            tau=tau,
            normalization=normalization,
            is_causal=is_causal,
            allow_leak=True,
        )

    reference = functools.partial(naive_attention, normalization=normalization, is_causal=is_causal)
    assert_matches_reference(jax.jit(fn), jax.jit(reference), (*qkve(), ALPHA, TAU), rtol=1e-4)


def test_prefix_is_the_published_formula_on_every_prefix():
    q, k, v, energy = qkve()
    whole = energy_gated_attention(
        q, k, v, energy, alpha=ALPHA, tau=TAU, normalization="prefix", is_causal=True
    )
    for i in (0, 1, 4, T - 1):
        part = [x[:, : i + 1] for x in (q, k, v, energy)]
        published = energy_gated_attention(*part, alpha=ALPHA, tau=TAU, normalization="sequence")
        np.testing.assert_allclose(whole[:, i], published[:, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", ["plain", "masks, biases and segments"])
@pytest.mark.few(1)
def test_prefix_in_chunks_equals_prefix_at_once(options):
    length = 11  # with chunks of 4 the last one is padded
    q, k, v, energy = qkve(length=length)
    segments, more, key_bias = None, {}, jnp.zeros((B, length, 1))
    if options != "plain":
        segments = jnp.array([[0] * 4 + [1] * 7, [3] * 9 + [4] * 2])
        key_bias = normal(8, B, length, 1).at[:, 2].set(-jnp.inf)
        more = {
            "mask": normal(6, B, 1, length, length) > -1.0,
            "bias": normal(7, 1, N, length, length),
            "segment_ids": (segments, segments),
        }

    @functools.partial(jax.jit, static_argnums=0)
    def run(query_chunk, *args):
        def loss(q, k, v, energy, alpha, tau):
            statistics = prefix_statistics(energy, jnp.ones(energy.shape, bool), segments)
            out = attend_to_prefixes(
                *(q, k, v, energy, statistics, jnp.arange(length)[None]),
                **{"alpha": alpha, "tau": tau, "key_bias": key_bias, "query_chunk": query_chunk, **more},
            )
            return (out * normal(9, *out.shape)).sum(), out

        return jax.value_and_grad(loss, argnums=range(6), has_aux=True)(*args)

    (_, whole), gradients = run(256, q, k, v, energy, ALPHA, TAU)
    (_, chunked), chunked_gradients = run(4, q, k, v, energy, ALPHA, TAU)
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-6)
    for a, b in zip(chunked_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_prefix_never_holds_the_scores_at_once():
    """The largest intermediate of forward and backward is a chunk, at T = 8 chunks."""
    length = 8 * 256
    q, k, v, energy = (jax.ShapeDtypeStruct((1, length, 1, d), jnp.float32) for d in (8, 8, 8, 1))
    energy = jax.ShapeDtypeStruct((1, length, 1), jnp.float32)

    def loss(q, k, v, energy):
        return energy_gated_attention(
            q, k, v, energy, alpha=2.0, tau=0.0, normalization="prefix", is_causal=True
        ).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(q, k, v, energy).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < length * length * 4


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.few(2)
def test_padding_reaches_nothing(normalization):
    def fn(q, k, v, energy, mask):
        return energy_gated_attention(
            jnp.where(mask[..., None, None], q, 0),  # the mask is one of keys
            k,
            v,
            energy,
            alpha=ALPHA,
            tau=TAU,
            normalization=normalization,
            token_mask=mask,
            is_causal=normalization == "prefix",
        )

    assert_padding_invariant(jax.jit(fn), qkve())


def test_a_removed_key_enters_no_statistics():
    q, k, v, energy = qkve()
    keep = jnp.array([[True] * 8 + [False] * 3, [True] * 2 + [False] + [True] * 8])
    key_bias = jnp.where(keep, 0.3, -jnp.inf)[..., None]
    poisoned = jnp.where(keep[..., None], energy, jnp.nan)
    for normalization in NORMALIZATIONS:
        kw = {"alpha": ALPHA, "tau": TAU, "normalization": normalization}
        kw |= {"is_causal": normalization == "prefix"}
        np.testing.assert_allclose(
            energy_gated_attention(q, k, v, poisoned, **kw, key_bias=key_bias),
            energy_gated_attention(q, k, v, energy, **kw, token_mask=keep),
            rtol=1e-4,
            atol=1e-6,
        )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_row_without_keys_is_zero(normalization):
    mask = jnp.zeros((B, T), bool).at[1].set(True)

    def fn(q, k, v, energy):
        out = energy_gated_attention(
            q,
            k,
            v,
            energy,
            alpha=ALPHA,
            tau=TAU,
            normalization=normalization,
            token_mask=mask,
            is_causal=True,
            allow_leak=True,
        )
        return out.sum(), out

    gradients, out = jax.jit(jax.grad(fn, argnums=range(4), has_aux=True))(*qkve())
    np.testing.assert_array_equal(out[0], 0)
    assert all(np.isfinite(g).all() and not g[0].any() for g in gradients)


def test_a_first_key_to_come_reaches_no_row():
    """Not even where its energy is NaN."""
    q, k, v, energy = qkve()
    energy, mask = energy.at[:, -1].set(jnp.nan), jnp.broadcast_to(jnp.arange(T) == T - 1, (B, T))
    options = {"normalization": "prefix", "token_mask": mask, "is_causal": True}
    out = energy_gated_attention(q, k, v, energy, alpha=ALPHA, tau=TAU, **options)
    np.testing.assert_array_equal(out[:, :-1], 0)


def test_the_gate_adds_to_the_callers_key_bias():
    q, k, v, energy = qkve()
    key_bias = normal(8, B, T, N)
    gate = energy_gate(energy, alpha=ALPHA, tau=TAU)
    np.testing.assert_allclose(
        energy_gated_attention(q, k, v, energy, alpha=ALPHA, tau=TAU, key_bias=key_bias, is_causal=True),
        dot_product_attention(q, k, v, key_bias=gate + key_bias, is_causal=True),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.few(2)
def test_segments_do_not_see_each_other(normalization):
    q, k, v, energy = (x[:1] for x in qkve())
    kw = {"alpha": ALPHA, "tau": TAU, "normalization": normalization, "is_causal": True, "allow_leak": True}
    packed = energy_gated_attention(q, k, v, energy, **kw, segment_ids=jnp.array([[0] * 4 + [1] * (T - 4)]))
    for a, b in [(0, 4), (4, T)]:
        alone = energy_gated_attention(*(x[:, a:b] for x in (q, k, v, energy)), **kw)
        np.testing.assert_allclose(packed[:, a:b], alone, rtol=1e-4, atol=1e-5)


def test_sequence_statistics_leak():
    def fn(q, k, v, energy):
        return energy_gated_attention(
            q, k, v, energy, alpha=ALPHA, tau=TAU, normalization="sequence", is_causal=True, allow_leak=True
        )

    with pytest.raises(AssertionError, match=r"not causal.*energy"):
        assert_causal(jax.jit(fn), qkve())


def test_cross_attention_takes_energies_of_the_keys():
    q, k, v, energy = qkve()
    out = energy_gated_attention(q[:, :3], k, v, energy, alpha=ALPHA, tau=TAU)
    gate = energy_gate(energy, alpha=ALPHA, tau=TAU)
    np.testing.assert_allclose(
        out, dot_product_attention(q[:, :3], k, v, key_bias=gate), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.few(2)
def test_decoding_equals_the_whole_pass(normalization):
    kw = {"alpha": ALPHA, "tau": TAU}

    def whole(q, k, v, energy, mask):
        # In decode "sequence" can know the prefix alone.
        name = "prefix" if normalization == "sequence" else normalization
        return energy_gated_attention(
            q, k, v, energy, **kw, normalization=name, token_mask=mask, is_causal=True, scale=0.4
        )

    @jax.jit
    def step(state, q, k, v, energy, mask):
        return energy_gated_attention_step(
            state, q, k, v, energy, **kw, normalization=normalization, token_mask=mask, scale=0.4
        )

    assert_decode_matches(
        jax.jit(whole),
        lambda: energy_gated_attention_init_state(B, T, K, H, num_heads=N, value_dim=V),
        step,
        (*qkve(), jnp.ones((B, T), bool).at[0, 2].set(False)),
        prefill=5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("normalization", ["running", "prefix"])
def test_a_full_cache_gives_nan(normalization):
    q, k, v, energy = qkve()
    state = energy_gated_attention_init_state(B, 6, K, H, num_heads=N, value_dim=V)
    kw = {"alpha": 2.0, "tau": 0.0, "normalization": normalization}
    state, out = energy_gated_attention_step(state, *(x[:, :5] for x in (q, k, v, energy)), **kw)
    assert np.isfinite(out).all()
    _, out = energy_gated_attention_step(state, *(x[:, 5:7] for x in (q, k, v, energy)), **kw)
    assert np.isnan(out).all()


def test_attention_refuses_bad_arguments(no_typecheck):
    q, k, v, energy = qkve()
    kw = {"alpha": 2.0, "tau": 0.0}
    with pytest.raises(ValueError, match="is_causal must be True"):
        energy_gated_attention(q, k, v, energy, **kw, normalization="prefix")
    with pytest.raises(ValueError, match="key must be as long as query"):
        energy_gated_attention(q[:, :3], k, v, energy, **kw, normalization="prefix", is_causal=True)
    with pytest.raises(ValueError, match="allow_leak"):
        energy_gated_attention(q, k, v, energy, **kw, normalization="sequence", is_causal=True)
    with pytest.raises(ValueError, match="normalization must be one of"):
        energy_gated_attention(q, k, v, energy, **kw, normalization="layer")
    with pytest.raises(ValueError, match=r"energy must have shape \(B, S, N\) = \(2, 11, 4\)"):
        energy_gated_attention(q, k, v, energy[..., :2], **kw)
    with pytest.raises(ValueError, match="alpha must"):
        energy_gated_attention(q, k, v, energy, alpha=jnp.ones(3), tau=0.0)
    with pytest.raises(ValueError, match="token_mask must have shape"):
        energy_gated_attention(q, k, v, energy, **kw, token_mask=jnp.ones((B, T + 1), bool))
    with pytest.raises(ValueError, match="key_bias must be broadcastable"):
        energy_gated_attention(q, k, v, energy, **kw, key_bias=jnp.ones((B, T, 3)))
    with pytest.raises(ValueError, match="query must"):
        energy_gated_attention(q[0, 0], k, v, energy, **kw)
    state = energy_gated_attention_init_state(B, T, K, H, num_heads=N, value_dim=V)
    with pytest.raises(ValueError, match="energy must have shape"):
        energy_gated_attention_step(state, q, k, v, energy[:, :1], **kw)


@pytest.mark.parametrize("normalization", ["running", pytest.param("prefix", marks=pytest.mark.slow)])
def test_local_window(normalization):
    """The gates are those without the window; the weights are limited to it."""
    q, k, v, energy = qkve()
    near = (abs(jnp.arange(T)[:, None] - jnp.arange(T)) <= 2)[None, None]
    options = {"alpha": ALPHA, "tau": TAU, "normalization": normalization, "is_causal": True}
    got = jaxattn.energy_gated_attention(q, k, v, energy, local_window_size=2, **options)
    expected = energy_gated_attention(q, k, v, energy, mask=near, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

    @jax.jit
    def decoded(*arrays):
        state = energy_gated_attention_init_state(B, T, K, H, num_heads=N, value_dim=V)
        out = []
        for part in (slice(0, 4), slice(4, 5), slice(5, T)):
            state, new = jaxattn.energy_gated_attention_step(
                state,
                *(x[:, part] for x in arrays),
                alpha=ALPHA,
                tau=TAU,
                normalization=normalization,
                local_window_size=2,
            )
            out.append(new)
        return jnp.concatenate(out, axis=1)

    np.testing.assert_allclose(decoded(q, k, v, energy), expected, rtol=1e-4, atol=1e-5)
