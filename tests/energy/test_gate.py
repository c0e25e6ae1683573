import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.energy import energy_gate_init_state
from jaxattn.testing import (
    assert_causal,
    assert_decode_matches,
    assert_matches_reference,
    assert_padding_invariant,
)
from tests.energy.naive import (
    ALPHA,
    TAU,
    B,
    N,
    T,
    energy_gate,
    energy_gate_step,
    naive_log_gate,
    normal,
)


@pytest.mark.parametrize("normalization", ["running", "sequence", None])
@pytest.mark.few(2)
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
    # Equal tokens leave a layer with energies that differ by several roundings: z is not their sign.
    noise = np.random.default_rng(0).integers(-8, 9, (1, 40, 1)) * np.finfo(np.float32).eps
    noisy = jnp.float32(3 + 3 * noise)
    gate = energy_gate(noisy, alpha=2.0, tau=0.0)
    np.testing.assert_allclose(jnp.exp(gate), 0.5, atol=0.15)
    np.testing.assert_array_equal(jax.grad(total)(noisy), 0)
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
