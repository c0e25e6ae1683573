import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.models import BackboneConfig, PairClassifier, SequenceClassifier

CONFIG = BackboneConfig(num_layers=1, num_heads=2, hidden_size=16, max_length=16)
TOKENS = jax.random.randint(jax.random.key(1), (3, 2, 6), 1, 11)
MASK = jnp.arange(6) < jnp.array([[6, 3], [2, 5], [4, 4]])[..., None]


def make(mechanism="softmax", num_layers=1, **kwargs):
    config = dataclasses.replace(CONFIG, mechanism=mechanism, num_layers=num_layers)
    return PairClassifier(11, 2, config, rngs=nnx.Rngs(0), **kwargs)


logits_of = nnx.jit(lambda model, tokens, mask=None: model(tokens, mask))


@pytest.mark.parametrize("mechanism", ["softmax", "features:oprf-orf:8", "tree:2x2"])
@pytest.mark.few(1)
def test_padding_further_changes_no_logit_whatever_it_holds(mechanism):
    model = make(mechanism, num_layers=2)
    alone = logits_of(model, TOKENS, MASK)
    assert alone.shape == (3, 2)
    assert alone.dtype == jnp.float32
    for filler in (0, 5):
        padded = jnp.full((3, 2, 16), filler).at[:, :, :6].set(jnp.where(MASK, TOKENS, filler))
        mask = jnp.zeros((3, 2, 16), bool).at[:, :, :6].set(MASK)
        np.testing.assert_allclose(logits_of(model, padded, mask), alone, atol=2e-6)


def test_both_towers_are_one_encoder_and_the_head_compares_them():
    model = make(head_size=5)
    pooled = jax.jit(SequenceClassifier(11, 2, CONFIG, rngs=nnx.Rngs(0)).pooled)
    vectors = [pooled(TOKENS[:, i], MASK[:, i]) for i in (0, 1)]  # equal seeds, equal encoders
    a, b = vectors
    hidden = jnp.concatenate([a, b, a * b, a - b], -1) @ model.hidden.kernel[...] + model.hidden.bias[...]
    expected = jnp.maximum(hidden, 0) @ model.head.kernel[...] + model.head.bias[...]
    np.testing.assert_allclose(nnx.jit(model)(TOKENS, MASK), expected, atol=1e-6)
    assert model.hidden.kernel.shape == (64, 5)


def test_rows_do_not_meet_and_the_order_of_a_pair_matters():
    model = make()
    whole = logits_of(model, TOKENS, MASK)
    np.testing.assert_allclose(logits_of(model, TOKENS[::-1], MASK[::-1]), whole[::-1], atol=1e-6)
    assert jnp.abs(logits_of(model, TOKENS[:, ::-1], MASK[:, ::-1]) - whole).max() > 1e-5


def test_a_sequence_classifier_may_have_a_hidden_layer_in_its_head():
    model = SequenceClassifier(11, 3, CONFIG, head_size=7, rngs=nnx.Rngs(0))
    x = jax.jit(model.pooled)(TOKENS[:, 0])
    hidden = jnp.maximum(x @ model.hidden.kernel[...], 0)
    np.testing.assert_allclose(nnx.jit(model)(TOKENS[:, 0]), hidden @ model.head.kernel[...], atol=1e-6)
    assert model.head.kernel.shape == (7, 3)


def test_what_is_no_pair_is_named(no_typecheck):
    with pytest.raises(ValueError, match=r"tokens must have the shape \(B, 2, T\)"):
        make()(TOKENS[:, :1])
    with pytest.raises(ValueError, match="at most max_length = 16"):
        make()(jnp.zeros((1, 2, 17), int))
