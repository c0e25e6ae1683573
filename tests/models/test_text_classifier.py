from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core.spmd import get_logical_axis_rules

from jaxattn.encoders.tokenizer import Tokens
from jaxattn.models import TextClassifier
from jaxattn.models.batching import in_batches
from jaxattn.nn import Encoder, InceptiveHead, PoolingHead

D = 8


class Plain(nnx.Module):
    """An encoder that knows nothing of dropout."""

    def __init__(self, rngs):
        self.embedding = nnx.Embed(20, D, rngs=rngs)

    def __call__(self, input_ids, attention_mask):
        return self.embedding(input_ids)


class Deep(Plain):
    """An encoder with dropout of its own."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.encoder = Encoder(1, D, 2, dropout=0.5, rngs=rngs)

    def __call__(self, input_ids, attention_mask, *, deterministic=True, rngs=None):
        x = self.embedding(input_ids)
        return self.encoder(x, token_mask=attention_mask, deterministic=deterministic, rngs=rngs)


def make(encoder, **head):
    rngs = nnx.Rngs(0)
    sizes = {"filters": 4, "num_heads": 4, "hidden_features": 8}
    return TextClassifier(encoder(rngs), InceptiveHead(D, 3, **(sizes | head), rngs=rngs))


IDS = jnp.array([[3, 4, 5, 6], [7, 8, 0, 0]])


@pytest.mark.parametrize("encoder", [Plain, Deep])
def test_padding_changes_no_logit(encoder):
    model = nnx.jit(make(encoder, pooling="attention"))
    np.testing.assert_allclose(model(IDS, IDS > 0)[1:], model(IDS[1:, :2]), atol=1e-6)
    np.testing.assert_array_equal(model(IDS, (IDS > 0).astype(jnp.int32)), model(IDS, IDS > 0))
    assert model(IDS).shape == (2, 3)


def test_dropout_reaches_the_encoder_only_where_it_takes_it():
    @nnx.jit
    def call(model, key):
        return model(IDS, deterministic=False, rngs=nnx.Rngs(dropout=key))

    for encoder, expected in ((Plain, False), (Deep, True)):
        model = make(encoder, dropout=0.0)
        passes = [call(model, jax.random.key(seed)) for seed in (0, 1)]
        assert (abs(passes[0] - passes[1]).max() > 1e-3) == expected


def test_relevance_is_that_of_the_head_on_the_hidden_states():
    model = make(Plain)
    hidden, mask = model.encoder(IDS, IDS > 0), IDS > 0
    np.testing.assert_array_equal(model.relevance(IDS, mask), model.head.relevance(hidden, mask))
    other = model.relevance(IDS, mask, classes=jnp.array([2, 2]))
    np.testing.assert_array_equal(other, model.head.relevance(hidden, mask, classes=jnp.array([2, 2])))
    plain = TextClassifier(model.encoder, PoolingHead(D, 2, rngs=nnx.Rngs(0)))
    np.testing.assert_allclose(plain.relevance(IDS)[:, 0], 1, atol=1e-6)


def test_programs_are_for_the_rules_in_force():
    seen = []

    class Model(nnx.Module):
        encoder = SimpleNamespace(config=SimpleNamespace(pad_token_id=0))

        def __call__(self, input_ids, mask, deterministic):
            seen.append(get_logical_axis_rules())
            return input_ids

    for rules in ((), [("batch", "data")], [("batch", "data")]):
        with nnx.logical_axis_rules(rules):
            list(in_batches(Model(), [Tokens(*[np.array([1, 2])] * 4)], 8, 1))
    assert len(seen) == 2
