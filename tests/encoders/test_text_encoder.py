"""The encoder's call: dropout and gradients, and bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.encoders.helpers import random_encoder
from tests.encoders.make_encoder_fixtures import CONFIGS


def test_training_mode_drops_and_gradients_reach_every_parameter():
    settings = CONFIGS["deberta-v2-convolution"] | {"num_hidden_layers": 1}
    encoder = random_encoder(settings)
    ids = np.random.default_rng(0).integers(0, 60, (2, 9))

    @nnx.jit
    def run(encoder, key):
        def loss(encoder):
            out = encoder(ids, deterministic=False, rngs=nnx.Rngs(dropout=key))
            return (out**3).sum()

        return nnx.value_and_grad(loss)(encoder)

    (first, gradients), (second, _) = (run(encoder, jax.random.key(seed)) for seed in (0, 1))
    assert first != second
    # A key's offset moves all scores of a query alike: softmax does not feel it.
    for path, gradient in nnx.to_flat_state(gradients):
        assert jnp.abs(gradient[...]).max() > 1e-6 or path[-2:] == ("key", "bias"), path


def test_bad_calls_are_named():
    encoder = random_encoder()
    with pytest.raises(ValueError, match="at most 32 columns, the model's limit; got 33"):
        encoder(jnp.zeros((1, 33), int))
    with pytest.raises(ValueError, match="input_ids must be between 0 and 59; got values from 0 to 60"):
        encoder(np.array([[0, 60]]))
    with pytest.raises(ValueError, match="token_type_ids must be between 0 and 1; got values from 0 to 2"):
        encoder(np.array([[0, 1]]), token_type_ids=np.array([[0, 2]]))
    with pytest.raises(ValueError, match=r"tokenize needs the tokenizer\.json"):
        encoder.tokenize(["text"])
    distil = random_encoder(CONFIGS["distilbert"])
    with pytest.raises(ValueError, match="token_type_ids must be None: distilbert here has no token types"):
        distil(np.array([[0, 1]]), token_type_ids=np.array([[0, 1]]))


def test_ids_that_are_constants_of_a_compiled_function_are_checked():
    """Inside jit, operations on constants give tracers."""
    encoder, good, bad = random_encoder(), jnp.array([[1, 2, 3]]), jnp.array([[1, 60]])
    assert jax.eval_shape(lambda: encoder(good)).shape == (1, 3, 16)
    with pytest.raises(ValueError, match="between 0 and 59; got values from 1 to 60"):
        jax.eval_shape(lambda: encoder(bad))


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2-convolution", "modernbert"])
def test_an_empty_batch_has_empty_vectors(name):
    encoder = random_encoder(CONFIGS[name])
    states = encoder.hidden_states(jnp.zeros((0, 5), int))
    assert {state.shape for state in states} == {(0, 5, 16)}
