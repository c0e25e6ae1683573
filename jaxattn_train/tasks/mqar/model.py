"""A causal model with a short convolution below its blocks."""

from typing import NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxattn.core.arrays import ArrayLike
from jaxattn.core.parameters import UndecayedParam, parameter
from jaxattn.models import BackboneConfig, LanguageModel
from jaxattn_train.data.generators.mqar import vocab_size
from jaxattn_train.engine.functional import Functional, backbone, functionalize
from jaxattn_train.tasks.mqar.config import MQARConfig


class RecallModel(LanguageModel):
    """A language model whose embedding adds that of the token before, each channel times a learned weight.

    This convolution over two tokens tells a value which key it belongs to. All mechanisms get it: without one, most
    of the training goes into a first layer that copies the token before, which is not what is measured.

    Args:
        vocab_size: number of tokens V.
        config: sizes and options.
        rngs: random streams for the initial values.
    """

    def __init__(self, vocab_size: int, config: BackboneConfig, *, rngs: nnx.Rngs):
        super().__init__(vocab_size, config, rngs=rngs)
        init, width = nnx.initializers.normal(1.0), (config.hidden_size,)
        self.before = parameter(init, rngs.params(), width, ("embed",), config.param_dtype, UndecayedParam)

    def _embed(
        self, tokens: Int[ArrayLike, "B T"], positions: Int[Array, "*#B T"] | None
    ) -> Float[Array, "B T D"]:
        x = super()._embed(tokens, positions)
        return x + self.before[...].astype(x.dtype) * jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    def init_state(self, batch: int, max_length: int | None = None) -> NoReturn:
        """Raises: the model does not decode."""
        raise NotImplementedError("RecallModel does not decode: its state would need the token before.")


def recall_model(config: MQARConfig) -> Functional:
    """The configured model as functions of its parameters.

    Raises:
        UserError: what the model itself rejects.
    """

    def build(key: PRNGKeyArray) -> RecallModel:
        body = backbone(config.model, max_length=config.data.length)
        return RecallModel(vocab_size(config.data.num_keys), body, rngs=nnx.Rngs(params=key))

    tokens = jax.ShapeDtypeStruct((1, config.data.length), jnp.int32)
    return functionalize(build, tokens, dropout=config.model.dropout > 0)
