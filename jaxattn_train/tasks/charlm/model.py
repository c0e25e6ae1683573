"""The language model as functions of its parameters."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from jaxattn.models import LanguageModel
from jaxattn_train.engine.functional import Functional, backbone, functionalize
from jaxattn_train.tasks.charlm.config import ModelConfig


def language_model(config: ModelConfig, vocab_size: int) -> Functional:
    """The configured language model.

    Args:
        config: sizes, mechanism, positions, dtype of the computation.
        vocab_size: number of tokens.

    Returns:
        The model as functions of its parameters.

    Raises:
        UserError: what the model itself rejects, such as an unknown mechanism.

    Examples:
        >>> model = language_model(ModelConfig(num_layers=1, features=16, context_length=8), vocab_size=5)
        >>> params = model.init(jax.random.key(0))
        >>> model.apply(params, jnp.zeros((1, 8), int)).shape
        (1, 8, 5)
    """

    def build(key: PRNGKeyArray) -> LanguageModel:
        body = backbone(config, max_length=config.context_length, allow_leak=config.allow_leak)
        return LanguageModel(vocab_size, body, rngs=nnx.Rngs(params=key))

    tokens = jax.ShapeDtypeStruct((1, config.context_length), jnp.int32)
    return functionalize(build, tokens, dropout=config.dropout > 0)
