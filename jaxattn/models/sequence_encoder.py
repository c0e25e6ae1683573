"""The shared part of sequence classifiers: from tokens to one vector a sequence."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.arrays import ArrayLike, as_jax
from jaxattn.models.backbone import INIT, Backbone, BackboneConfig
from jaxattn.nn.encoder import Encoder
from jaxattn.nn.layers import layer_norm, linear
from jaxattn.nn.pooling import Pooling
from jaxattn.tree import Tree


class SequenceEncoder(Backbone):
    """Embedding, positions, pre-norm bidirectional blocks, a pool over the real tokens, and a normalisation.

    A sequence has the same vector however far it is padded.

    Args:
        vocab_size: number of tokens V.
        config: sizes and options; the vector has its dropout too.
        pooling: "mean", "max", "cls" or "attention"; see `jaxattn.nn.Pooling`.
        rngs: random streams for the initial values.

    Raises:
        ValueError: an unknown pooling, or sizes that do not divide.
    """

    def __init__(self, vocab_size: int, config: BackboneConfig, *, pooling: str = "mean", rngs: nnx.Rngs):
        super().__init__(vocab_size, config, rngs=rngs)
        self.encoder = self._stack(Encoder, config, rngs)
        self.pooling = Pooling(pooling, config.hidden_size, param_dtype=config.param_dtype, rngs=rngs)
        self.norm = layer_norm(
            config.hidden_size, dtype=jnp.float32, param_dtype=config.param_dtype, rngs=rngs
        )

    def pooled(
        self,
        tokens: Int[ArrayLike, "B T"],
        token_mask: Bool[ArrayLike, "B T"] | None = None,
        *,
        tree: Tree | None = None,
        positions: Int[ArrayLike, "*#B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B D"]:
        """One vector a sequence, in float32; the arguments are those of `SequenceClassifier`."""
        mask, places = as_jax(np.ones(tokens.shape, bool) if token_mask is None else token_mask, positions)
        drop: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        x = self.dropout(self._embed(tokens, places), **drop)
        x = self.encoder(x, token_mask=mask, positions=self._for_blocks(places), tree=tree, **drop)
        return self.dropout(self.norm(self.pooling(x.astype(jnp.float32), mask)), **drop)


def head_layer(
    width_in: int, width_out: int, axes: tuple[str, str], config: BackboneConfig, rngs: nnx.Rngs
) -> nnx.Linear:
    """A layer between a sequence's vector and the logits, computed in float32."""
    return linear(
        width_in,
        width_out,
        axes,
        kernel_init=INIT,
        dtype=jnp.float32,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )
