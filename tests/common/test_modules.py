"""Every check over every mechanism as a module, inside this library's layer and inside Flax's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxattn.testing import (
    assert_causal,
    assert_close_to_reference,
    assert_decode_matches,
    assert_matches_reference,
    assert_padding_invariant,
)
from tests.common.harness import afresh, first_tier, layer
from tests.common.module_table import LEAKING_MODULE, MODULES

HOMES = {"Attention": False, "MultiHeadAttention": True}
# One row a family, and one a kind of gate, is in the first tier everywhere. The other rows combine these: whether
# those that read something of their own are causal, right and decode is in the first tier, all else in the slow one.
# Flax's layer is reached through an adapter that knows no mechanism, so two rows are enough there.
BASIC = (
    "softmax",
    "energy-running",
    "lags",
    "features",
    "tree",
    "linear",
    "softmax-forget",
    "softmax-outgate",
)
# Of what the projections around a mechanism do.
FAMILIES = ("softmax", "energy-running", "features", "tree")
OWN = (*BASIC, "softmax-options", "energy-prefix", "softmax-alibi", "retention-gated")
IN_FLAX = ("softmax", "energy-running")
basic_modules = first_tier(MODULES, *BASIC)
families = first_tier(MODULES, *FAMILIES)


def modules_in_both_homes(*names):
    """Parametrises over all rows, in our own layer and in Flax's; those that are not named are in the slow tier."""
    return pytest.mark.parametrize(
        ("row", "flax"),
        [
            pytest.param(
                row,
                flax,
                id=f"{home}-{row.name}",
                marks=[] if row.name in (IN_FLAX if flax else names) else [pytest.mark.slow],
            )
            for home, flax in HOMES.items()
            for row in MODULES
        ],
    )


def arguments(row, **options):
    """(the layer, its input and parameters, their sequence axes)."""
    made = layer(row, **options)
    return made, (made.inputs, *made.parameters.values()), (1, *(None for _ in made.parameters))


@modules_in_both_homes(*OWN)
@pytest.mark.usefixtures("optimised")
def test_causal(row, flax):
    made, args, axes = arguments(row, flax=flax)
    assert_causal(afresh(made.call), args, axis=axes)


@pytest.mark.parametrize("flax", HOMES.values(), ids=HOMES)
def test_statistics_of_the_whole_sequence_are_reported_as_a_leak(flax):
    made, args, axes = arguments(LEAKING_MODULE, flax=flax)
    with pytest.raises(AssertionError, match="not causal"):
        assert_causal(made.call, args, axis=axes)


@modules_in_both_homes(*FAMILIES)
def test_padding_reaches_nothing(row, flax):
    made, args, axes = arguments(row, flax=flax)

    def padded(*rest):
        return made.call(*rest[:-1], mask=rest[-1])

    # NaN in the input meets the projections first: outputs survive it, parameter gradients (0 times NaN) cannot.
    assert_padding_invariant(padded, args, axis=axes, rtol=1e-4, check_gradients=False)


@modules_in_both_homes(*BASIC)
def test_reference(row, flax):
    """Outputs, and gradients with respect to the input and to every parameter, with padding."""
    made, args, _ = arguments(row, flax=flax)
    mask = jnp.arange(10) < jnp.array([[10], [6]])

    def on_tokens(call):
        return lambda *a: jnp.where(mask[..., None], call(*a, mask=mask), 0.0)

    # Gradients of the mechanism are checked in our own layer.
    assert_matches_reference(
        on_tokens(made.call), on_tokens(made.naive), args, rtol=1e-4, atol=1e-4, check_gradients=not flax
    )


@first_tier([row for row in MODULES if not row.own], "features")
def test_inside_linen(row):
    """A mechanism without parameters in a Linen layer: the same core on the same projections."""
    made, args, _ = arguments(row, flax=True)
    fn = functools.partial(made.module.attention_fn, is_causal=True)
    linen_layer = linen.MultiHeadDotProductAttention(num_heads=2, attention_fn=fn)
    parameters: dict = {}
    for name, value in made.parameters.items():
        place, array = name.split(".")
        parameters.setdefault(place, {})[array] = value
    mask = jnp.arange(10) < jnp.array([[10], [6]])

    @jax.jit
    def call(x):
        out = linen_layer.apply({"params": parameters}, x, mask=mask[:, None, None, :])
        return jnp.where(mask[..., None], out, 0.0)

    expected = jnp.where(mask[..., None], made.naive(*args, mask=mask), 0.0)
    np.testing.assert_allclose(call(made.inputs), expected, atol=1e-5)


@families
def test_full_attention(row):
    made, args, _ = arguments(row, flax=False)
    if row.only_causal:
        with pytest.raises(ValueError, match="is_causal must be True"):
            made.call(*args, is_causal=False)
        return
    assert_matches_reference(
        lambda *a: made.call(*a, is_causal=False),
        lambda *a: made.naive(*a, is_causal=False),
        args,
        check_gradients=False,
    )


@basic_modules
def test_packed_segments(row):
    made, args, _ = arguments(row, flax=False)
    ids = jnp.broadcast_to(jnp.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2]), (2, 10))
    if not row.segments:
        with pytest.raises(ValueError, match="segment_ids cannot be used"):
            made.call(*args, segment_ids=ids)
        return
    assert_matches_reference(
        lambda *a: made.call(*a, segment_ids=ids),
        lambda *a: made.naive(*a, segment_ids=ids),
        args,
        check_gradients=False,
    )


@basic_modules
def test_decode(row):
    made, args, _ = arguments(row, flax=False)
    assert_decode_matches(
        lambda x: made.call(x, *args[1:]),
        lambda: made.module.init_state(2, 10),
        jax.jit(lambda state, x: made.module.step(state, x)),
        (made.inputs,),
        prefill=4,
    )


@basic_modules
def test_ragged_batch(row):
    """Steps in which sequences have different numbers of tokens, or none: each as if it were alone."""
    made, args, _ = arguments(row, flax=False)
    expected = made.call(*args)
    step = jax.jit(lambda state, x, mask: made.module.step(state, x, token_mask=mask))
    state, start = made.module.init_state(2, 10), np.zeros(2, int)
    for count in ([4, 2], [4, 0], [1, 4]):
        at = start[:, None] + np.arange(4)
        mask = np.arange(4) < np.array(count)[:, None]
        x = jnp.where(mask[..., None], made.inputs[np.arange(2)[:, None], np.minimum(at, 9)], jnp.nan)
        state, out = step(state, x, jnp.asarray(mask))
        for b, n in enumerate(count):
            np.testing.assert_allclose(out[b, :n], expected[b, start[b] : start[b] + n], atol=1e-5)
        start += count


@families
def test_bfloat16(row):
    made, args, _ = arguments(row, flax=False, dtype="bfloat16")
    assert made.call(*args).dtype == jnp.bfloat16
    assert_close_to_reference(made.call, made.naive, args, max_error=2e-2)


@families
def test_eager_equals_jit(row):
    made, args, _ = arguments(row, flax=False)
    np.testing.assert_allclose(made.module(made.inputs, is_causal=True), made.call(*args), atol=2e-6)


@families
def test_sequences_of_padding_alone(row):
    """Nothing is attended to, so the output is the projection's offset; gradients are finite."""
    made, args, _ = arguments(row, flax=False)
    mask = jnp.array([[True] * 10, [False] * 10])
    out, vjp = jax.vjp(lambda *a: made.call(*a, mask=mask), *args)
    np.testing.assert_allclose(out[1], jnp.broadcast_to(made.parameters["out.bias"], out[1].shape), atol=1e-6)
    assert all(jnp.isfinite(g).all() for g in vjp(jnp.ones_like(out)))


@families
def test_huge_inputs(row):
    made, (x, *parameters), _ = arguments(row, flax=False)
    out, vjp = jax.vjp(made.call, 1e3 * x, *parameters)
    assert jnp.isfinite(out).all() and all(jnp.isfinite(g).all() for g in vjp(jnp.ones_like(out)))
