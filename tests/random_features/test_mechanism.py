"""The random-feature mechanism: whose statistics it uses and when, redraws, and what it refuses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import (
    Attention,
    EnergyGated,
    FeatureDraw,
    FeatureStatistic,
    RandomFeatures,
    Softmax,
    parse_mechanism,
)

X = jax.random.normal(jax.random.key(0), (2, 6, 8))


def attention(**options):
    module = Attention(2, 8, mechanism=RandomFeatures(num_features=6, **options), rngs=nnx.Rngs(0))
    module.set_attributes(calibrating=True)
    return module


@nnx.jit
def call(module, x):
    return module(x, is_causal=True)


def test_statistics_are_used_from_the_next_call_on():
    module = attention()
    start = module.mechanism.feature_map.component.a
    first = call(module, X)
    module.set_attributes(calibrating=False)
    later = call(module, X)
    # The first call knew nothing of its own tokens, the second one does; without calibrating nothing changes.
    fresh = attention()
    fresh.set_attributes(calibrating=False)
    np.testing.assert_array_equal(first, call(fresh, X))
    assert abs(later - first).max() > 1e-5
    np.testing.assert_array_equal(later, call(module, X))
    assert abs(module.mechanism.feature_map.component.a - start).max() > 1e-5


def test_statistics_are_those_of_calibrate_then_a_moving_average():
    module = attention(momentum=0.75)
    mechanism = module.mechanism
    query, key = module._queries(X, None), module._keys_and_values(X, None)[0]
    call(module, X)
    alone = mechanism.feature_map.calibrate(query, key).moments  # momentum 0
    np.testing.assert_allclose(mechanism.feature_map.moments.key_second, alone.key_second, rtol=1e-4)
    for _ in range(5):
        call(module, X)
    twice = module._keys_and_values(2 * X, None)[0]
    before, second = mechanism.feature_map.moments.key_mean, twice.mean((0, 1)) * 4**-0.25
    call(module, 2 * X)
    np.testing.assert_allclose(
        mechanism.feature_map.moments.key_mean, 0.75 * before + 0.25 * second, rtol=1e-4, atol=1e-6
    )


def test_eigendecompositions_are_made_now_and_then_and_statistics_in_every_call():
    module = attention(component="aderf", refit_every=3)
    held, changed = module.mechanism, []
    for n in range(8):
        before = held.feature_map
        call(module, X * (1 + n))
        after = held.feature_map
        assert abs(after.moments.key_second - before.moments.key_second).max() > 1e-4
        changed.append(bool(abs(after.component.key_map - before.component.key_map).max() > 1e-4))
        fitted = after.with_moments(after.moments).component.key_map
        assert changed[-1] == bool(abs(fitted - after.component.key_map).max() < 1e-5), n
    assert changed == [True, True, True, True, False, False, True, False]
    query, (key, _) = module._queries(X, None), module._keys_and_values(X, None)
    held.calibrate(query, key)
    fitted = held.feature_map.with_moments(held.feature_map.moments).component.key_map
    np.testing.assert_allclose(held.feature_map.component.key_map, fitted, atol=1e-5)


def test_redraws_follow_a_schedule_that_depends_on_nothing_else():
    def draws(module):
        found = []
        for _ in range(6):
            call(module, X)
            found.append(np.asarray(module.mechanism.feature_map.weights.rows))
        return found

    first, again = (draws(attention(weights="gaussian", redraw_every=2)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    changed = [bool((a != b).any()) for a, b in itertools.pairwise(first)]
    assert changed == [True, False, True, False, True]


def test_what_is_learned_and_what_is_held():
    module = attention(component="gerf", weights="fastfood_learnable", draw_per_head=True)
    learned = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(module.mechanism, nnx.Param))}
    assert learned == {"component_t"} | {
        f"weights_{n}" for n in module.mechanism.feature_map.weights.trainable
    }
    held = nnx.state(attention().mechanism, (FeatureDraw, FeatureStatistic))
    assert not nnx.to_flat_state(nnx.state(attention().mechanism, nnx.Param))
    assert {"weights_rows", "component_a", "calls"} <= {path[-1] for path, _ in nnx.to_flat_state(held)}


def test_a_mask_of_keys_is_accepted_one_of_pairs_is_not():
    module = attention()
    module.set_attributes(calibrating=False)
    kept = jnp.arange(6) < 4
    by_pairs = jnp.broadcast_to(kept, (2, 1, 1, 6))
    by_tokens = jnp.broadcast_to(kept, (2, 6))
    np.testing.assert_allclose(
        module(X, mask=by_pairs)[:, :4], module(X, token_mask=by_tokens)[:, :4], atol=1e-6
    )
    with pytest.raises(ValueError, match=r"mask must be the same for all queries"):
        module(X, mask=jnp.ones((2, 1, 6, 6), bool))


def test_qk_norm():
    """Queries and keys of length gain · sqrt(H), whatever the input; it composes with every mechanism."""
    module = Attention(2, 8, mechanism=Softmax(), qk_norm=0.5, num_kv_heads=1, rngs=nnx.Rngs(0))
    query, key = module._queries(100 * X, None), module._keys_and_values(100 * X, None)[0]
    for x in (query, key):
        np.testing.assert_allclose(jnp.sqrt(jnp.square(x).mean(-1)), 0.5, rtol=1e-4)
    assert jnp.isfinite(attention(component="aderf")(X)).all()
    with pytest.raises(ValueError, match=r"qk_norm must be None or a positive gain; got 0"):
        Attention(2, 8, qk_norm=0.0, rngs=nnx.Rngs(0))


def test_spelling():
    assert parse_mechanism("features:saderf-fastfood:64") == RandomFeatures("saderf", "fastfood", 64)
    assert parse_mechanism("features") == RandomFeatures()
    gated = parse_mechanism("features:oprf-p_model:32:redraw=500+gate=none")
    assert gated == EnergyGated(RandomFeatures("oprf", "p_model", 32, redraw_every=500), normalization=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("features:oprf:64", "need a pair COMPONENT-WEIGHTS"),
        ("features:oprf-orff:64", "weights must be one of"),
        ("features:oprf-orf:0", "num_features must be at least 1"),
        ("features:oprf-orf:64:100", "redraw=STEPS"),
        ("features:oprf-orf:64+gate=prefix", "only inner=Softmax"),
    ],
)
def test_bad_spelling(text, message):
    with pytest.raises(ValueError, match=message):
        parse_mechanism(text)


def test_bad_options():
    with pytest.raises(ValueError, match="momentum must be at least 0 and below 1; got 1"):
        RandomFeatures(momentum=1.0)
    for name in ("redraw_every", "refit_every"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
            RandomFeatures(**{name: 0})
    assert hash(RandomFeatures("posrf", component_options={"hyperbolic": True}))
