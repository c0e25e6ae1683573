"""Other attention in pretrained encoders, with the tiny fixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn import Tree
from jaxattn.models import calibrate
from jaxattn.nn import (
    CrossCorrelation,
    EnergyGated,
    Hierarchical,
    RandomFeatures,
    Softmax,
    inject,
    replace_attention,
)
from tests.encoders.helpers import fixture, load, states_of, types_of

FAMILIES = ["bert", "deberta-v3", "modernbert"]


def last(encoder, arrays, **call):
    states = states_of(encoder, arrays["input_ids"], arrays["attention_mask"], **types_of(arrays), **call)
    return np.asarray(states[-1])[arrays["attention_mask"]]


def expected(arrays):
    return arrays["states"][-1][arrays["attention_mask"]]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.few(1)
def test_an_open_gate_keeps_relative_positions_and_windows(name, tmp_path):
    encoder, arrays = load(name)
    gated = replace_attention(encoder, EnergyGated())
    for block in gated.blocks:
        block.attention.mechanism.alpha[...] = jnp.zeros(2)  # every gate is 1/2, and cancels
    np.testing.assert_allclose(last(gated, arrays), expected(arrays), atol=2e-5)
    for block in gated.blocks:
        block.attention.mechanism.alpha[...] = jnp.full(2, 2.0)
    assert np.abs(last(gated, arrays) - expected(arrays)).max() > 1e-2
    with pytest.raises(ValueError, match=r"layer 0 has EnergyGatedModule\. Save nnx\.state\(encoder\)"):
        gated.save_pretrained(tmp_path / "gated")


def test_a_tree_of_one_family_is_softmax_and_a_deeper_one_is_near():
    encoder, arrays = load("bert")
    flat = inject(encoder, lambda length: Tree.uniform(length, length))
    np.testing.assert_allclose(last(flat, arrays), expected(arrays), atol=5e-5)
    deep = inject(encoder, lambda length: Tree.uniform(length, 4), layers=[1])
    error = np.abs(last(deep, arrays) - expected(arrays)).mean()
    assert 1e-3 < error < 0.5 * np.abs(expected(arrays)).mean()
    given = inject(encoder, None, layers=[0])
    by_call = last(given, arrays, tree=Tree.uniform(20, 4))
    by_function = last(inject(encoder, lambda length: Tree.uniform(length, 4), layers=[0]), arrays)
    np.testing.assert_allclose(by_call, by_function, atol=1e-6)
    with pytest.raises(ValueError, match="tree is for mechanisms that attend over one"):
        encoder(arrays["input_ids"], tree=Tree.uniform(20, 4))


def test_random_features_come_nearer_when_calibrated():
    encoder, arrays = load("bert")
    with pytest.raises(ValueError, match="random features with statistics in some layer; none has"):
        calibrate(encoder, arrays["input_ids"])
    features = RandomFeatures("sderf", num_features=256)
    drawn = replace_attention(encoder, features, rngs=nnx.Rngs(0))
    fitted = calibrate(drawn, arrays["input_ids"], arrays["attention_mask"], **types_of(arrays))
    before, after = (np.abs(last(model, arrays) - expected(arrays)).mean() for model in (drawn, fitted))
    assert after < 0.7 * before
    np.testing.assert_array_equal(last(fitted, arrays), last(fitted, arrays))  # it stays as it is now
    with pytest.raises(ValueError, match="passes must be at least 1; got 0"):
        calibrate(drawn, arrays["input_ids"], passes=0)


def test_calibration_has_no_memory_of_the_passes_before():
    encoder, arrays = load("bert")
    drawn = replace_attention(encoder, RandomFeatures("oprf", num_features=16), layers=[0])
    batch = arrays["input_ids"], arrays["attention_mask"]
    moments = [
        jax.tree.leaves(
            calibrate(drawn, *batch, passes=passes).blocks[0].attention.mechanism.feature_map.moments
        )
        for passes in (1, 3)
    ]
    for once, thrice in zip(*moments, strict=True):
        np.testing.assert_allclose(once, thrice, rtol=1e-5)


@pytest.mark.parametrize("mechanism", [Hierarchical((4,)), RandomFeatures(num_features=8)])
def test_deberta_loses_no_relative_position_silently(mechanism):
    encoder, arrays = load("deberta-v3")
    changed = replace_attention(encoder, mechanism, layers=[1])
    with pytest.raises(ValueError, match=r"(?s)must form scores of single pairs.*drop_relative_terms=True"):
        last(changed, arrays)


def test_deberta_without_relative_terms_attends_by_content():
    encoder, arrays = load("deberta-v3")
    without = inject(encoder, lambda length: Tree.uniform(length, length))
    without.set_attributes(drop_relative_terms=True)
    # A table of zeros leaves q_i·(offset of k), which moves all scores of a query alike, and k_j·(offset of q).
    encoder.relative.table[...] = jnp.zeros_like(encoder.relative.table[...])
    encoder.relative.norm.bias[...] = jnp.zeros(16)
    for block in (*encoder.blocks, *without.blocks):
        block.attention.query.bias[...] = jnp.zeros((2, 8))
    np.testing.assert_allclose(last(without, arrays), last(encoder, arrays), atol=5e-5)


def test_a_replaced_local_layer_of_modernbert_sees_the_whole_text():
    encoder, arrays = load("modernbert")
    everywhere = inject(encoder, lambda length: Tree.uniform(length, length), layers=[1, 2])
    for block in encoder.blocks:
        block.attention.window = 100
    np.testing.assert_allclose(last(everywhere, arrays), last(encoder, arrays), atol=5e-5)


@pytest.mark.parametrize("name", ["modernbert", "deberta-v3"])
def test_lags_keep_windows_and_relative_positions(name):
    encoder, arrays = load(name)
    lags = replace_attention(encoder, CrossCorrelation(lags=0))  # no shift but 0: softmax
    np.testing.assert_allclose(last(lags, arrays), expected(arrays), atol=2e-5)


def test_softmax_by_another_backend_is_the_same():
    encoder, arrays = load("deberta-v1-settings")
    blockwise = replace_attention(encoder, Softmax(implementation="blockwise"))
    np.testing.assert_allclose(last(blockwise, arrays), expected(arrays), atol=2e-5)


def test_fixtures_are_small():
    assert sum(array.nbytes for array in fixture("bert")[1].values()) < 100_000
