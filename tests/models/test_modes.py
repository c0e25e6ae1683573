"""Training and evaluation: arguments of the call, and the modules' own settings where these are None."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.models import BackboneConfig, LanguageModel, PairClassifier, SequenceClassifier, TextClassifier
from jaxattn.nn import Decoder, Encoder, InceptiveHead, PoolingHead, TransformerBlock
from tests.encoders.helpers import random_encoder
from tests.encoders.make_encoder_fixtures import CONFIGS

RNGS = nnx.Rngs(0)
CONFIG = BackboneConfig(num_layers=1, num_heads=2, hidden_size=16, max_length=8, dropout=0.5)
HEAD = InceptiveHead(16, 3, filters=4, num_heads=4, normalization="batch", hidden_features=8, rngs=RNGS)
X, TOKENS = jax.random.normal(jax.random.key(0), (2, 5, 16)), jnp.arange(10).reshape(2, 5)
MODULES = {
    "block": (TransformerBlock(16, 2, dropout=0.5, rngs=RNGS), X),
    "encoder": (Encoder(1, 16, 2, dropout=0.5, rngs=RNGS), X),
    "decoder": (Decoder(1, 16, 2, dropout=0.5, rngs=RNGS), X),
    "pooling head": (PoolingHead(16, 3, rngs=RNGS), X),
    "inceptive head": (HEAD, X),
    "language model": (LanguageModel(11, CONFIG, rngs=RNGS), TOKENS),
    "sequence classifier": (SequenceClassifier(11, 3, CONFIG, rngs=RNGS), TOKENS),
    "pair classifier": (PairClassifier(11, 3, CONFIG, rngs=RNGS), TOKENS[:, None].repeat(2, axis=1)),
    "text encoder": (random_encoder(CONFIGS["deberta-v2-convolution"]), TOKENS),
    "text classifier": (TextClassifier(random_encoder(), HEAD), TOKENS),
}


@nnx.jit(static_argnames="deterministic")
def call(module, x, seed, deterministic=None):
    return module(x, deterministic=deterministic, rngs=nnx.Rngs(dropout=jax.random.key(seed)))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.few(2)
def test_train_and_eval_switch_what_the_call_leaves_open(name):
    module, x = nnx.clone(MODULES[name][0]), MODULES[name][1]
    at_first = call(module, x, 0)
    np.testing.assert_array_equal(at_first, call(module, x, 1))
    module.train()
    assert jnp.abs(call(module, x, 0) - call(module, x, 1)).max() > 1e-4
    np.testing.assert_array_equal(call(nnx.clone(module), x, 0), call(nnx.clone(module), x, 0))
    before = nnx.clone(module)
    module.eval()
    if "class" not in name and "head" not in name:  # no batch statistics, which training has moved
        np.testing.assert_array_equal(call(module, x, 0), at_first)
    np.testing.assert_array_equal(call(before, x, 0, deterministic=True), call(module, x, 1))
    assert jnp.abs(call(module, x, 0, deterministic=False) - call(module, x, 1)).max() > 1e-4


def test_batch_statistics_follow_the_mode():
    head = nnx.clone(HEAD)
    call(head, X, 0)
    np.testing.assert_array_equal(head.norm.mean[...], HEAD.norm.mean[...])
    head.set_attributes(use_running_average=False)
    call(head, X, 0)
    assert jnp.abs(head.norm.mean[...] - HEAD.norm.mean[...]).max() > 1e-4


def test_a_frozen_encoder_has_no_dropout_in_training():
    model = TextClassifier(random_encoder(), PoolingHead(16, 3, dropout=0.0, rngs=RNGS), freeze_encoder=True)
    at_first = call(model, TOKENS, 0)
    model.train()
    np.testing.assert_array_equal(call(model, TOKENS, 0), at_first)
