import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.models import BackboneConfig, SequenceClassifier
from jaxattn.nn.pooling import POOLINGS


def make(mechanism="softmax", positions="learned", pooling="mean", **kwargs):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "max_length": 16}
    config = BackboneConfig(mechanism=mechanism, positions=positions, **(sizes | kwargs))
    return SequenceClassifier(11, 3, config, pooling=pooling, rngs=nnx.Rngs(0))


logits_of = nnx.jit(lambda model, tokens, mask=None: model(tokens, mask))
TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 1, 11)


@pytest.mark.parametrize(
    ("mechanism", "positions", "pooling"),
    [
        ("softmax", "learned", "mean"),
        ("softmax+gate=running", "rotary", "max"),
        ("features:oprf-orf:8", "sinusoidal", "cls"),
        ("softmax+gate=sequence", "none", "attention"),
    ],
)
@pytest.mark.few(1)
def test_padding_changes_no_logit_whatever_it_holds(mechanism, positions, pooling):
    model = make(mechanism, positions, pooling=pooling, num_layers=2)
    alone = logits_of(model, TOKENS)
    assert alone.shape == (2, 3)
    assert alone.dtype == jnp.float32
    for width, filler in ((7, 0), (16, 5)):
        padded = jnp.full((2, width), filler).at[:, :6].set(TOKENS)
        mask = jnp.broadcast_to(jnp.arange(width) < 6, (2, width))
        np.testing.assert_allclose(logits_of(model, padded, mask), alone, atol=2e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_later_tokens_matter_to_every_pooling(pooling):
    model = make(pooling=pooling)
    changed = TOKENS.at[:, -1].set((TOKENS[:, -1] + 1) % 11)
    assert jnp.abs(logits_of(model, TOKENS) - logits_of(model, changed)).max() > 1e-4


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_empty_sequence_has_finite_logits_and_gradients(pooling):
    model, mask = make(pooling=pooling), jnp.zeros((2, 6), bool)

    def loss(model):
        return (model(TOKENS, mask) ** 2).sum()

    value, gradients = nnx.jit(nnx.value_and_grad(loss))(model)
    assert jnp.isfinite(value)
    chex.assert_tree_all_finite(gradients)


def test_dropout_needs_its_key_and_is_off_by_default():
    model = make(dropout=0.5)
    first, second = (model(TOKENS, deterministic=False, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 1))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(model(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pooling": "sum"}, "pooling must be one of 'mean', 'max', 'cls', 'attention'; got 'sum'"),
        ({"positions": "fourier"}, "positions must be one of"),
        ({"mechanism": "sofmax"}, "sofmax"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
    with pytest.raises(ValueError, match="at most max_length = 16"):
        make()(jnp.zeros((1, 17), int))
