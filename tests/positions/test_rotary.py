import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.positions import rotary
from jaxattn.testing import assert_matches_reference

B, T, N, H = 2, 7, 3, 8


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def naive(x, positions, base=10000.0):
    """Pairs as complex numbers, turned by exp(i p omega)."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    omega = base ** (-jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
    turned = pairs * jnp.exp(1j * positions[..., None, None] * omega)
    return jnp.stack([turned.real, turned.imag], -1).reshape(x.shape)


def test_matches_complex_rotation():
    x = normal(0, B, T, N, H)
    assert_matches_reference(jax.jit(rotary), jax.jit(lambda x: naive(x, jnp.arange(T))), (x,))
    positions = jnp.array([[3, 1, 4, 1, 5, 9, 2], [0, 0, 0, 100, 200, 300, 400]])
    np.testing.assert_allclose(
        rotary(x, positions, base=500.0), naive(x, positions, 500.0), rtol=1e-4, atol=1e-4
    )


def transformers_rotary(x, positions, base, rotary_dim, *, linear=1.0, dynamic=1.0, trained=None):
    """The formulas of transformers' modeling_rope_utils and apply_rotary_pos_emb, in float64."""
    x, positions = np.asarray(x, np.float64), np.broadcast_to(np.asarray(positions, np.float64), x.shape[:2])
    if dynamic != 1:
        stretch = (dynamic * x.shape[1] / trained) - (dynamic - 1)
        base = base * stretch ** (rotary_dim / (rotary_dim - 2))
    frequencies = 1 / base ** (np.arange(0, rotary_dim, 2) / rotary_dim) / linear
    angles = positions[..., None] * frequencies
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, :, None] for f in (np.cos, np.sin))
    turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    half = rotary_dim // 2
    rotated_half = np.concatenate([-turned[..., half:], turned[..., :half]], -1)
    return np.concatenate([turned * cos + rotated_half * sin, rest], -1)


@pytest.mark.parametrize("rotary_dim", [H, 4])
@pytest.mark.parametrize(
    "positions", [np.arange(T), np.array([[3, 1, 4, 1, 5, 9, 2], [0, 0, 0, 50, 60, 70, 80]])]
)
def test_the_half_split_form_is_that_of_checkpoints(rotary_dim, positions):
    x = normal(0, B, T, N, H)
    half = {"pairing": "half", "rotary_dim": rotary_dim, "base": 500.0}
    for ours, theirs in (
        ({}, {}),
        ({"linear_factor": 4.0}, {"linear": 4.0}),
        ({"ntk_factor": 3.0 * T / 4 - 2.0}, {"dynamic": 3.0, "trained": 4}),
    ):
        expected = transformers_rotary(x, positions, 500.0, rotary_dim, **theirs)
        np.testing.assert_allclose(rotary(x, jnp.asarray(positions), **half, **ours), expected, atol=2e-5)


def test_gradients_of_the_half_split_form_are_its_inverse():
    x = normal(0, B, T, N, H)
    options = {"pairing": "half", "rotary_dim": 4, "linear_factor": 2.0, "ntk_factor": 1.5}
    _, pullback = jax.vjp(lambda x: rotary(x, **options), x)
    # A rotation is orthogonal: its transpose undoes it.
    np.testing.assert_allclose(pullback(rotary(x, **options))[0], x, atol=1e-5)


def test_the_pairings_differ_by_a_permutation_of_channels():
    x = normal(0, B, T, N, H)
    order = np.arange(H).reshape(2, H // 2).T.reshape(-1)  # 0, H/2, 1, H/2 + 1, …
    np.testing.assert_allclose(rotary(x, pairing="half")[..., order], rotary(x[..., order]), atol=1e-6)


def test_two_channels_have_one_frequency_that_no_ntk_factor_changes():
    x = normal(0, B, T, N, 2)
    np.testing.assert_array_equal(rotary(x, ntk_factor=4.0), rotary(x))


def test_products_depend_on_the_distance_alone():
    q, k = normal(1, 1, T, N, H), normal(2, 1, T, N, H)

    @jax.jit
    def scores(shift):
        turned = rotary(q, jnp.arange(T) + shift), rotary(k, jnp.arange(T) + shift)
        return jnp.einsum("btnh,bsnh->bnts", *turned)

    for shift in (1, 17, 500):
        np.testing.assert_allclose(scores(shift), scores(0), atol=1e-3)
    unmoved = rotary(q, jnp.zeros(T, int))
    np.testing.assert_array_equal(unmoved, q)


def test_positions_of_new_tokens_continue_the_sequence():
    x = normal(0, B, T, N, H)
    later = rotary(x[:, 4:], 4 + jnp.arange(T - 4))
    np.testing.assert_array_equal(later, rotary(x)[:, 4:])


def test_dtype_unbatched_and_vmap():
    x = normal(0, B, T, N, H)
    whole = rotary(x)
    np.testing.assert_allclose(rotary(x[0]), whole[0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(rotary)(x), whole, rtol=1e-6)
    coarse = rotary(x.astype(jnp.bfloat16))
    assert coarse.dtype == jnp.bfloat16
    # Rounded once on the way in and once on the way out, not in between.
    exact = rotary(x.astype(jnp.bfloat16).astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(coarse, exact)


def test_bad_arguments_are_refused(no_typecheck):
    x = normal(0, B, T, N, H)
    with pytest.raises(ValueError, match="x must have an even last axis"):
        rotary(x[..., :5])
    with pytest.raises(ValueError, match="x must have shape"):
        rotary(x[0, 0])
    with pytest.raises(ValueError, match="base must be positive; got -1"):
        rotary(x, base=-1)
    with pytest.raises(ValueError, match="positions must"):
        rotary(x, jnp.arange(T + 1))
    for size in (0, 3, H + 2):
        with pytest.raises(ValueError, match=f"rotary_dim must be even and between 2 and H = 8; got {size}"):
            rotary(x, rotary_dim=size)
    with pytest.raises(ValueError, match="pairing must be one of 'interleaved', 'half'; got 'neox'"):
        rotary(x, pairing="neox")
    for name in ("linear_factor", "ntk_factor"):
        with pytest.raises(ValueError, match=f"{name} must be positive; got 0"):
            rotary(x, **{name: 0.0})
    with pytest.raises(ValueError, match="positions must"):
        rotary(x[0], jnp.zeros((B, T)))
