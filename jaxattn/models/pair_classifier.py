"""A classifier of pairs of token sequences: one encoder reads both, a small head compares them."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.models.sequence_encoder import SequenceEncoder, head_layer
from jaxattn.tree.tree import Tree


class PairClassifier(SequenceEncoder):
    """One vector for each of two sequences, by the same encoder; then [a, b, a·b, a − b] → ReLU layer → logits.

    The sequences meet only in the head, so that one may be encoded without the other. Padding changes nothing.

    Args:
        vocab_size: number of tokens V.
        num_classes: number of classes C.
        features: width D.
        head_features: width of the hidden layer of the head; None for D.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.
        **encoder: num_layers, num_heads, max_length and the rest of `SequenceEncoder`'s arguments.

    Raises:
        ValueError: as `SequenceEncoder`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import PairClassifier
        >>> model = PairClassifier(
        ...     100, 2, num_layers=1, num_heads=2, features=16, max_length=32, rngs=nnx.Rngs(0)
        ... )
        >>> tokens = jnp.array([[[5, 6, 7, 0], [8, 9, 0, 0]]])
        >>> model(tokens, tokens > 0).shape
        (1, 2)

    Reference: the two-tower head of the Long Range Arena, arXiv 2011.04006.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        *,
        features: int,
        head_features: int | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **encoder: Any,
    ):
        super().__init__(vocab_size, features=features, param_dtype=param_dtype, rngs=rngs, **encoder)
        width = head_features or features
        self.hidden = head_layer(4 * features, width, ("embed", "mlp"), param_dtype, rngs)
        self.head = head_layer(width, num_classes, ("mlp", "classes"), param_dtype, rngs)

    def __call__(
        self,
        tokens: Int[Array, "B 2 T"],
        token_mask: Bool[Array, "B 2 T"] | None = None,
        *,
        tree: Tree | None = None,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B C"]:
        """Logits of the classes.

        Args:
            tokens: token ids, both sequences of each pair padded to one length.
            token_mask: True at real tokens, False at padding; None if all are real.
            tree: for the mechanism "tree": one tree over the T tokens, or a batch of 2 B trees in the order of
                `tokens` (first pair's first sequence, its second, …).
            deterministic: no dropout.
            rngs: holds the stream "dropout" unless `deterministic`.

        Returns:
            Logits in float32.

        Raises:
            ValueError: not two sequences, or more tokens than `max_length`.
        """
        if tokens.ndim != 3 or tokens.shape[1] != 2:
            raise ValueError(f"tokens must have the shape (B, 2, T); got {tokens.shape}.")
        length = tokens.shape[2]
        flat = None if token_mask is None else token_mask.reshape(-1, length)
        # One pass for both: twice the rows are cheaper than two calls, and statistics of attention see both alike.
        x = self.pooled(
            tokens.reshape(-1, length), flat, tree=tree, deterministic=deterministic, rngs=rngs
        ).reshape(len(tokens), 2, -1)
        a, b = x[:, 0], x[:, 1]
        return self.head(nnx.relu(self.hidden(jnp.concatenate([a, b, a * b, a - b], axis=-1))))
