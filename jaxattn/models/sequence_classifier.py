"""A classifier of token sequences with any attention and any position encoding."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.mechanism import Mechanism
from jaxattn.models.sequence_encoder import POOLING, SequenceEncoder, head_layer
from jaxattn.tree.tree import Tree

__all__ = ["POOLING", "SequenceClassifier"]


class SequenceClassifier(SequenceEncoder):
    """Embedding, positions, pre-norm bidirectional blocks, a pool over the real tokens, and logits.

    Padding changes nothing: a sequence has the same logits however far it is padded.

    Args:
        vocab_size: number of tokens V.
        num_classes: number of classes C.
        num_layers: number of blocks.
        num_heads: query heads.
        features: width D.
        max_length: the longest sequence, in tokens.
        mechanism: an attention mechanism or its spelling, such as "softmax" or "tree".
        positions: "none", "learned", "sinusoidal", "rotary", "morlet" or "morlet:learned".
        pooling: what a sequence becomes: the "mean" or "max" over its tokens, or its "first" token.
        mlp_ratio: hidden width of the MLPs over D.
        head_features: width of a hidden layer with ReLU before the logits; None for none.
        dropout: probability, on the embedding, on every branch and on the pooled vector.
        num_kv_heads: key/value heads; None for num_heads.
        qk_norm: normalise queries and keys, with a gain that starts at this; see `jaxattn.nn.Attention`.
        projection_norm: LayerNorm after the projections; see `jaxattn.nn.Attention`.
        query_residual: add queries to what heads attend to; see `jaxattn.nn.Attention`. With this, projection_norm
            and the mechanism "tree:given:noself" the blocks are those of the published hierarchical encoder.
        dtype: dtype of the computation; parameters are kept in `param_dtype`.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Raises:
        ValueError: an unknown mechanism, position encoding or pooling, or sizes that do not divide.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import SequenceClassifier
        >>> model = SequenceClassifier(
        ...     100, 3, num_layers=1, num_heads=2, features=16, max_length=32, rngs=nnx.Rngs(0)
        ... )
        >>> tokens = jnp.array([[5, 6, 7, 0, 0]])
        >>> model(tokens, tokens > 0).shape
        (1, 3)
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        *,
        num_layers: int,
        num_heads: int,
        features: int,
        max_length: int,
        mechanism: Mechanism | str = "softmax",
        positions: str = "learned",
        pooling: str = "mean",
        mlp_ratio: float = 4.0,
        head_features: int | None = None,
        dropout: float = 0.0,
        num_kv_heads: int | None = None,
        qk_norm: float | None = None,
        projection_norm: bool = False,
        query_residual: bool = False,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            vocab_size,
            num_layers=num_layers,
            num_heads=num_heads,
            features=features,
            max_length=max_length,
            mechanism=mechanism,
            positions=positions,
            pooling=pooling,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            num_kv_heads=num_kv_heads,
            qk_norm=qk_norm,
            projection_norm=projection_norm,
            query_residual=query_residual,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        hidden = None
        if head_features is not None:
            hidden = head_layer(features, head_features, ("embed", "mlp"), param_dtype, rngs)
        self.hidden = nnx.data(hidden)
        axis = "embed" if head_features is None else "mlp"
        self.head = head_layer(head_features or features, num_classes, (axis, "classes"), param_dtype, rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        token_mask: Bool[Array, "B T"] | None = None,
        *,
        tree: Tree | None = None,
        positions: Int[Array, "*#B T"] | None = None,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B C"]:
        """Logits of the classes.

        Args:
            tokens: token ids.
            token_mask: True at real tokens, False at padding; None if all are real.
            tree: one tree over the T tokens, or a batch of trees, for the mechanism "tree"; with others
                it raises.
            positions: positions in tokens; None for 0 to T − 1.
            deterministic: no dropout.
            rngs: holds the stream "dropout" unless `deterministic`.

        Returns:
            Logits in float32.

        Raises:
            ValueError: more tokens than `max_length`, or a tree without a mechanism that takes one.
        """
        x = self.pooled(
            tokens, token_mask, tree=tree, positions=positions, deterministic=deterministic, rngs=rngs
        )
        return self.head(x if self.hidden is None else nnx.relu(self.hidden(x)))
