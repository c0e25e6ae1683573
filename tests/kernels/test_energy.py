import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import kernels
from jaxattn.kernels import (
    _prefix,
    dot_product_attention,
    energy_gate_init_state,
    energy_gated_attention_init_state,
)
from jaxattn.testing import (
    assert_causal,
    assert_decode_matches,
    assert_matches_reference,
    assert_padding_invariant,
)

# Compiled whole: operation by operation the suite would take minutes longer.
energy_gate = jax.jit(kernels.energy_gate, static_argnames=("normalization", "is_causal", "allow_leak"))
energy_gate_step = jax.jit(kernels.energy_gate_step, static_argnames="normalization")
energy_gated_attention = jax.jit(
    kernels.energy_gated_attention,
    static_argnames=("normalization", "is_causal", "allow_leak", "scale", "implementation"),
)
energy_gated_attention_step = jax.jit(
    kernels.energy_gated_attention_step, static_argnames=("normalization", "scale")
)

B, T, N, K, H, V = 2, 11, 4, 2, 8, 5
NORMALIZATIONS = ["running", "sequence", "prefix", None]
ALPHA = jnp.array([2.0, 1.0, -1.5, 4.0])
TAU = jnp.array([0.0, 0.5, -0.3, 1.0])


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def qkve(dtype=jnp.float32, length=T):
    return (
        normal(0, B, length, N, H, dtype=dtype),
        normal(1, B, length, K, H, dtype=dtype),
        normal(2, B, length, K, V, dtype=dtype),
        normal(3, B, length, N, dtype=dtype),
    )


def naive_log_gate(energy, alpha, tau, normalization, keep=None):
    """(B, N, T, S) of log g_ij, with one mean and deviation for every pair (i, j)."""
    e = jnp.moveaxis(energy, 1, 2)  # (B, N, S)
    i, j, k = jnp.meshgrid(*(jnp.arange(e.shape[-1]),) * 3, indexing="ij")
    enters = {"running": k <= j, "prefix": k <= i, "sequence": k >= 0, None: k < 0}[normalization]
    enters = enters if keep is None else enters & keep[:, None, None, None, :]
    enters = jnp.broadcast_to(enters, (*e.shape[:2], *k.shape)).astype(e.dtype)
    count = jnp.maximum(enters.sum(-1), 1)
    mean = jnp.einsum("bnijk,bnk->bnij", enters, e) / count
    deviation = e[:, :, None, None, :] - mean[..., None]
    variance = (enters * deviation**2).sum(-1) / count
    z = e[:, :, None, :]
    if normalization is not None:
        z = jnp.where(variance > 0, (z - mean) / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    alpha, tau = (jnp.broadcast_to(x, e.shape[1:2])[:, None, None] for x in (alpha, tau))
    return jnp.log(1 / (1 + jnp.exp(-alpha * (z - tau))))


def naive_attention(q, k, v, energy, alpha, tau, normalization, is_causal, keep=None):
    """The published form: softmax weights times the gate, renormalised."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / jnp.sqrt(q.shape[-1])
    allowed = jnp.tril(jnp.ones(scores.shape[-2:], bool)) if is_causal else jnp.ones(scores.shape[-2:], bool)
    allowed = jnp.broadcast_to(allowed, scores.shape)
    if keep is not None:
        allowed &= keep[:, None, None, :]
    p = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
    p = jnp.where(allowed, p, 0) * jnp.exp(naive_log_gate(energy, alpha, tau, normalization, keep))
    total = p.sum(-1, keepdims=True)
    return jnp.einsum("bnts,bsnv->btnv", p / jnp.where(total > 0, total, 1), v)


# The gate


@pytest.mark.parametrize("normalization", ["running", "sequence", None])
def test_gate_matches_the_loop(normalization):
    def reference(energy, alpha, tau):
        # The last query sees every key; running and sequence gates are the same for all queries.
        gate = naive_log_gate(energy, alpha, tau, normalization)[:, :, -1]
        return jnp.moveaxis(gate, 1, 2)

    fn = jax.jit(lambda e, a, t: energy_gate(e, alpha=a, tau=t, normalization=normalization))
    assert_matches_reference(fn, jax.jit(reference), (normal(3, B, T, N), ALPHA, TAU), rtol=1e-4)


@pytest.mark.parametrize("normalization", ["running", "sequence"])
def test_masked_tokens_enter_no_statistics(normalization):
    keep = jnp.array([[True] * 7 + [False] * 4, [False, True, True, False] + [True] * 7])
    energy = normal(3, B, T, N)
    gate = energy_gate(energy, alpha=ALPHA, tau=TAU, normalization=normalization, mask=keep)
    assert gate.dtype == jnp.float32
    for b in range(B):
        alone = energy_gate(energy[b][keep[b]], alpha=ALPHA, tau=TAU, normalization=normalization)
        np.testing.assert_allclose(gate[b][keep[b]], alone, rtol=1e-5, atol=1e-6)
        assert (gate[b][~keep[b]] == -jnp.inf).all()
    per_head = jnp.broadcast_to(keep[..., None], energy.shape)
    np.testing.assert_array_equal(
        gate, energy_gate(energy, alpha=ALPHA, tau=TAU, normalization=normalization, mask=per_head)
    )


@pytest.mark.parametrize("normalization", ["running", "sequence", None])
def test_nan_energies_at_masked_tokens_reach_nothing(normalization):
    def fn(energy, alpha, tau, mask):
        gate = energy_gate(energy, alpha=alpha, tau=tau, normalization=normalization, mask=mask)
        return jnp.where(mask[..., None], gate, 0)

    args = (normal(3, B, T, N), ALPHA, TAU)
    assert_padding_invariant(jax.jit(fn), args, axis=(1, None, None))


@pytest.mark.parametrize("normalization", ["running", "sequence", None])
def test_segments_are_gated_as_if_alone(normalization):
    energy = normal(3, 1, T, N)
    segments = jnp.array([[4] * 3 + [7] * 6 + [4] * 2])
    gate = energy_gate(energy, alpha=2.0, tau=0.0, normalization=normalization, segment_ids=segments)
    parts = [
        energy_gate(energy[:, a:b], alpha=2.0, tau=0.0, normalization=normalization)
        for a, b in [(0, 3), (3, 9), (9, 11)]
    ]
    np.testing.assert_allclose(gate, jnp.concatenate(parts, 1), rtol=1e-5, atol=1e-6)


def test_first_position_and_constant_energies_have_finite_gradients():
    energy = jnp.full((1, 6, 1), 3.0)
    for normalization in ("running", "sequence"):

        def total(energy, normalization=normalization):
            return energy_gate(energy, alpha=2.0, tau=0.5, normalization=normalization).sum()

        gate = energy_gate(energy, alpha=2.0, tau=0.5, normalization=normalization)
        np.testing.assert_allclose(gate, jax.nn.log_sigmoid(-1.0), rtol=1e-6)  # z = 0
        np.testing.assert_array_equal(jax.grad(total)(energy), 0)
    single = jax.value_and_grad(lambda e: energy_gate(e, alpha=2.0, tau=0.0).sum())(jnp.ones((1, 1, 1)))
    assert np.isfinite(single[0]) and single[1] == 0


def test_running_statistics_are_accurate_over_a_long_sequence_with_a_large_mean():
    length = 65_536
    energy = (1e4 + np.random.default_rng(0).standard_normal((1, length, 1))).astype(np.float32)
    exact = energy[0, :, 0].astype(np.float64)
    count = np.arange(1, length + 1)
    # Shifting does not change z, and keeps the float64 cumulative sums exact enough to be the reference.
    shifted = exact - exact[0]
    mean = np.cumsum(shifted) / count
    variance = np.cumsum(shifted**2) / count - mean**2
    z = (shifted - mean) / np.sqrt(np.maximum(variance, 1e-12))
    gate = jax.jit(functools.partial(energy_gate, alpha=1.0, tau=0.0))(energy)[0, :, 0]
    np.testing.assert_allclose(gate[2:], -np.logaddexp(0, -z)[2:], atol=5e-6)


def test_gate_is_exact_where_the_sigmoid_underflows():
    gate, grad = jax.value_and_grad(lambda e: energy_gate(e, alpha=2.0, tau=0.0, normalization=None).sum())(
        jnp.full((1, 1, 1), -1e4)
    )
    assert gate == -2e4 and grad == 2.0


def test_unbatched_and_bfloat16_gate():
    energy = normal(3, T, N)
    gate = energy_gate(energy, alpha=ALPHA, tau=TAU)
    np.testing.assert_allclose(gate, energy_gate(energy[None], alpha=ALPHA, tau=TAU)[0], rtol=1e-6)
    coarse = energy.astype(jnp.bfloat16)
    same = energy_gate(coarse.astype(jnp.float32), alpha=ALPHA, tau=TAU)
    np.testing.assert_array_equal(energy_gate(coarse, alpha=ALPHA, tau=TAU), same)


@pytest.mark.parametrize("normalization", ["running", None])
def test_gate_streams(normalization):
    mask = normal(9, B, T) > -1.0

    def step(state, energy, mask):
        return energy_gate_step(state, energy, alpha=ALPHA, tau=TAU, normalization=normalization, mask=mask)

    assert_decode_matches(
        lambda e, m: jnp.exp(energy_gate(e, alpha=ALPHA, tau=TAU, normalization=normalization, mask=m)),
        lambda: energy_gate_init_state(B, N),
        lambda *args: (lambda state, gate: (state, jnp.exp(gate)))(*jax.jit(step)(*args)),
        (1e3 + normal(3, B, T, N), mask),
        prefill=4,
    )


@pytest.mark.parametrize("normalization", ["running", None])
def test_gate_is_causal(normalization):
    assert_causal(
        jax.jit(lambda e: energy_gate(e, alpha=ALPHA, tau=TAU, normalization=normalization, is_causal=True)),
        (normal(3, B, T, N),),
    )


def test_gate_refuses_bad_arguments(no_typecheck):
    energy, kw = normal(3, B, T, N), {"alpha": 2.0, "tau": 0.0}
    with pytest.raises(ValueError, match="energy_gated_attention"):
        energy_gate(energy, **kw, normalization="prefix")
    with pytest.raises(ValueError, match=r"normalization must be one of 'running'.*'batch'"):
        energy_gate(energy, **kw, normalization="batch")
    with pytest.raises(ValueError, match="allow_leak"):
        energy_gate(energy, **kw, normalization="sequence", is_causal=True)
    energy_gate(energy, **kw, normalization="sequence", is_causal=True, allow_leak=True)
    with pytest.raises(ValueError, match=r"energy must have shape .*\(11,\)"):
        energy_gate(energy[0, :, 0], **kw)
    with pytest.raises(ValueError, match=r"alpha must .*\(3,\)"):
        energy_gate(energy, alpha=jnp.ones(3), tau=0.0)
    with pytest.raises(ValueError, match=r"tau must .*\(2, 4\)"):
        energy_gate(energy, alpha=1.0, tau=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"mask must .*\(2, 5\)"):
        energy_gate(energy, **kw, mask=jnp.ones((B, 5), bool))
    with pytest.raises(ValueError, match="mask must be boolean"):
        energy_gate(energy, **kw, mask=jnp.ones((B, T)))
    with pytest.raises(ValueError, match="segment_ids must be integer"):
        energy_gate(energy, **kw, segment_ids=jnp.ones((B, T)))
    with pytest.raises(ValueError, match="energy must be floating"):
        energy_gate(jnp.ones((B, T, N), int), **kw)
    state = energy_gate_init_state(B, N)
    for normalization in ("sequence", "prefix"):
        with pytest.raises(ValueError, match="energy_gated_attention_step"):
            energy_gate_step(state, energy, **kw, normalization=normalization)
    with pytest.raises(ValueError, match=r"state.count must .*\(2, 3\)"):
        energy_gate_step(state, energy[..., :3], **kw)


# The attention


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_attention_matches_the_published_form(normalization, is_causal):
    if normalization == "prefix" and not is_causal:
        pytest.skip("prefix is causal")

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


@pytest.mark.parametrize("options", ["plain", "mask, bias and segments"])
def test_prefix_in_chunks_equals_prefix_at_once(options, monkeypatch):
    length = 11  # with chunks of 4 the last one is padded
    q, k, v, energy = qkve(length=length)
    more = {}
    if options != "plain":
        more = {
            "mask": normal(5, B, length) > -1.0,
            "attention_mask": normal(6, B, 1, length, length) > -1.0,
            "bias": normal(7, 1, N, length, length),
            "key_bias": normal(8, B, length, 1),
            "segment_ids": jnp.array([[0] * 4 + [1] * 7, [3] * 9 + [4] * 2]),
        }

    def fn(q, k, v, energy, alpha, tau):
        out = energy_gated_attention(
            q, k, v, energy, alpha=alpha, tau=tau, normalization="prefix", is_causal=True, **more
        )
        return (out * normal(9, *out.shape)).sum(), out

    def run():
        return jax.jit(jax.value_and_grad(fn, argnums=range(6), has_aux=True))(q, k, v, energy, ALPHA, TAU)

    (_, whole), gradients = run()
    monkeypatch.setattr(_prefix, "QUERY_CHUNK", 4)
    (_, chunked), chunked_gradients = jax.jit(lambda: run())()
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-6)
    for a, b in zip(chunked_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_prefix_never_holds_the_scores_at_once():
    """The largest intermediate of forward and backward is a chunk, at T = 8 chunks."""
    length = 8 * _prefix.QUERY_CHUNK
    q, k, v, energy = (jax.ShapeDtypeStruct((1, length, 1, d), jnp.float32) for d in (8, 8, 8, 1))
    energy = jax.ShapeDtypeStruct((1, length, 1), jnp.float32)

    def loss(q, k, v, energy):
        return energy_gated_attention(
            q, k, v, energy, alpha=2.0, tau=0.0, normalization="prefix", is_causal=True
        ).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(q, k, v, energy).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < length * length * 4


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
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
            mask=mask,
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
            energy_gated_attention(q, k, v, energy, **kw, mask=keep),
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
            mask=mask,
            is_causal=True,
            allow_leak=True,
        )
        return out.sum(), out

    gradients, out = jax.jit(jax.grad(fn, argnums=range(4), has_aux=True))(*qkve())
    np.testing.assert_array_equal(out[0], 0)
    assert all(np.isfinite(g).all() and not g[0].any() for g in gradients)


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
def test_segments_do_not_see_each_other(normalization):
    q, k, v, energy = (x[:1] for x in qkve())
    kw = {"alpha": ALPHA, "tau": TAU, "normalization": normalization, "is_causal": True, "allow_leak": True}
    packed = energy_gated_attention(q, k, v, energy, **kw, segment_ids=jnp.array([[0] * 4 + [1] * (T - 4)]))
    for a, b in [(0, 4), (4, T)]:
        alone = energy_gated_attention(*(x[:, a:b] for x in (q, k, v, energy)), **kw)
        np.testing.assert_allclose(packed[:, a:b], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalization", ["running", "prefix", None])
def test_attention_is_causal(normalization):
    def fn(q, k, v, energy):
        return energy_gated_attention(
            q, k, v, energy, alpha=ALPHA, tau=TAU, normalization=normalization, is_causal=True
        )

    assert_causal(jax.jit(fn), qkve())


def test_sequence_statistics_leak():
    def fn(q, k, v, energy):
        return energy_gated_attention(
            q, k, v, energy, alpha=ALPHA, tau=TAU, normalization="sequence", is_causal=True, allow_leak=True
        )

    with pytest.raises(AssertionError, match=r"not causal.*energy"):
        assert_causal(jax.jit(fn), qkve())


@pytest.mark.parametrize("normalization", ["running", "prefix"])
def test_large_values_stay_finite(normalization):
    q, k, v, energy = (100 * x for x in qkve())

    def fn(q, k, v, energy):
        out = energy_gated_attention(
            q, k, v, energy, alpha=50.0, tau=0.0, normalization=normalization, is_causal=True
        )
        return out.sum(), out

    gradients, out = jax.jit(jax.grad(fn, argnums=range(4), has_aux=True))(q, k, v, energy)
    assert all(np.isfinite(x).all() for x in (out, *gradients))


@pytest.mark.parametrize("normalization", ["running", "prefix"])
def test_bfloat16_is_close_to_float64(normalization):
    def fn(q, k, v, energy):
        return energy_gated_attention(
            q, k, v, energy, alpha=2.0, tau=0.0, normalization=normalization, is_causal=True
        )

    reference = functools.partial(
        naive_attention, alpha=2.0, tau=0.0, normalization=normalization, is_causal=True
    )
    args = qkve(jnp.bfloat16)
    assert jax.eval_shape(fn, *args).dtype == jnp.bfloat16
    assert_matches_reference(jax.jit(fn), jax.jit(reference), args, rtol=3e-2)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_unbatched_attention_and_vmap(normalization):
    kw = {"alpha": ALPHA, "tau": TAU, "normalization": normalization, "is_causal": True, "allow_leak": True}
    fn = functools.partial(energy_gated_attention, **kw)
    args = qkve()
    batched = fn(*args)
    np.testing.assert_allclose(fn(*(x[0] for x in args)), batched[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(fn)(*args), batched, rtol=1e-5, atol=1e-6)


def test_cross_attention_takes_energies_of_the_keys():
    q, k, v, energy = qkve()
    out = energy_gated_attention(q[:, :3], k, v, energy, alpha=ALPHA, tau=TAU)
    gate = energy_gate(energy, alpha=ALPHA, tau=TAU)
    np.testing.assert_allclose(
        out, dot_product_attention(q[:, :3], k, v, key_bias=gate), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_decoding_equals_the_whole_pass(normalization):
    kw = {"alpha": ALPHA, "tau": TAU}

    def whole(q, k, v, energy, mask):
        # In decode "sequence" can know the prefix alone.
        name = "prefix" if normalization == "sequence" else normalization
        return energy_gated_attention(
            q, k, v, energy, **kw, normalization=name, mask=mask, is_causal=True, scale=0.4
        )

    @jax.jit
    def step(state, q, k, v, energy, mask):
        return energy_gated_attention_step(
            state, q, k, v, energy, **kw, normalization=normalization, mask=mask, scale=0.4
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
    with pytest.raises(ValueError, match="mask must have shape"):
        energy_gated_attention(q, k, v, energy, **kw, mask=jnp.ones((B, T + 1), bool))
    with pytest.raises(ValueError, match="key_bias must be broadcastable"):
        energy_gated_attention(q, k, v, energy, **kw, key_bias=jnp.ones((B, T, 3)))
    with pytest.raises(ValueError, match="query must"):
        energy_gated_attention(q[0, 0], k, v, energy, **kw)
    state = energy_gated_attention_init_state(B, T, K, H, num_heads=N, value_dim=V)
    with pytest.raises(ValueError, match="energy must have shape"):
        energy_gated_attention_step(state, q, k, v, energy[:, :1], **kw)
