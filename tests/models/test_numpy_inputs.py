"""Models read arrays of NumPy, as tokenizers and data pipelines give them, like those of JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.models import (
    BackboneConfig,
    LanguageModel,
    PairClassifier,
    SentenceEncoder,
    SequenceClassifier,
    TextClassifier,
    generate,
    stream,
)
from jaxattn.nn import PoolingHead
from tests.encoders.helpers import random_encoder

CONFIG = BackboneConfig(num_layers=1, num_heads=2, hidden_size=16, max_length=32)
IDS = np.array([[2, 7, 9, 3], [4, 5, 0, 0]])
MASK, ROWS, PAIRS, PLACES = (
    IDS > 0,
    np.array([4, 2]),
    np.stack([IDS, IDS], axis=1),
    np.tile(np.arange(4), (2, 1)),
)
GREEDY = {"key": jax.random.key(0), "temperature": 0.0}
encoder = functools.cache(random_encoder)


@functools.cache
def classifier():
    return TextClassifier(encoder(), PoolingHead(16, 3, rngs=nnx.Rngs(0)))


@functools.cache
def model(kind, *sizes):
    return kind(50, *sizes, CONFIG, rngs=nnx.Rngs(0))


def language():
    return model(LanguageModel)


# Calls of models; x turns their arrays into those of NumPy or of JAX.
CALLS = {
    "classifier": lambda x: classifier()(x(IDS), x(MASK), token_type_ids=x(IDS // 9)),
    "relevance": lambda x: classifier().relevance(x(IDS), x(MASK), classes=x(ROWS // 4)),
    "head": lambda x: classifier().head(encoder()(x(IDS)), x(MASK)),
    "sentences": lambda x: SentenceEncoder(encoder())(x(IDS), x(MASK)),
    "language": lambda x: language()(x(IDS), token_mask=x(MASK), positions=x(PLACES)),
    "packed": lambda x: language()(x(IDS), segment_ids=x(IDS // 5), positions=x(PLACES)),
    "prefill": lambda x: language().prefill(x(IDS), token_mask=x(MASK), max_length=8)[1],
    "step": lambda x: language().step(language().init_state(2, 8), x(IDS))[1],
    "generate": lambda x: generate(language(), x(IDS), 2, prompt_lengths=x(ROWS), **GREEDY).tokens,
    "stream": lambda x: next(stream(language(), x(IDS), 2, prompt_lengths=x(ROWS), **GREEDY)),
    "sequences": lambda x: model(SequenceClassifier, 3)(x(IDS), x(MASK), positions=x(PLACES)),
    "pairs": lambda x: model(PairClassifier, 3)(x(PAIRS), x(PAIRS > 0)),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_arrays_of_numpy_give_what_those_of_jax_give(call):
    np.testing.assert_array_equal(call(np.asarray), call(jnp.asarray))
