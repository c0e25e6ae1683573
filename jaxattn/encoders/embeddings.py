"""The embedding of pretrained encoders: words, and in some absolute positions and token types."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.core.parameters import parameter
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layers import INIT, make_norm
from jaxattn.nn.layers import linear


class TextEmbeddings(nnx.Module):
    """norm(word + position + token type), of which the last two may be missing; some models project it.

    Args:
        config: sizes and choices.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.
    """

    def __init__(self, config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width = config.embedding_size or config.hidden_size

        def table(rows: int, axis: str) -> nnx.Param:
            return parameter(INIT, rngs.params(), (rows, width), (axis, "embed"), param_dtype)

        self.dtype = dtype
        self.pad_token_id = config.pad_token_id if config.positions_skip_padding else None
        self.word = table(config.vocab_size, "vocab")
        self.position = nnx.data(table(config.position_rows, "length") if config.position_rows else None)
        self.token_type = nnx.data(
            table(config.type_vocab_size, "token_type") if config.type_vocab_size else None
        )
        self.norm = make_norm(config, width, **options)
        self.dropout = nnx.Dropout(config.embedding_dropout, deterministic=True)
        project = None
        if config.embedding_size:
            project = linear(width, config.hidden_size, ("embed", "embed"), kernel_init=INIT, **options)
        self.project = nnx.data(project)

    def positions(self, input_ids: Int[Array, "B L"]) -> Int[Array, "*#B L"]:
        """Rows of the table of positions: 0, 1, …, or in RoBERTa a count of the ids that are not padding."""
        if self.pad_token_id is None:
            return jnp.arange(input_ids.shape[1])
        real = (input_ids != self.pad_token_id).astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.pad_token_id

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"] | None = None,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B L D"]:
        """The embedding of the tokens; None for `token_type_ids` means zeros."""
        x = self.word[...][input_ids].astype(self.dtype)
        if self.token_type is not None:
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type[...][types].astype(self.dtype)
        if self.position is not None:
            x = x + self.position[...][self.positions(input_ids)].astype(self.dtype)
        x = self.dropout(self.norm(x), deterministic=deterministic, rngs=rngs)
        return x if self.project is None else self.project(x)
