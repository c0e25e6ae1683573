"""A classifier of pairs of token sequences: one encoder reads both, a small head compares them."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.arrays import ArrayLike
from jaxattn.models.backbone import BackboneConfig
from jaxattn.models.sequence_encoder import SequenceEncoder, head_layer
from jaxattn.tree import Tree


class PairClassifier(SequenceEncoder):
    """Vectors a and b of two sequences by the same encoder; then [a, b, a·b, a − b] → ReLU layer → logits.

    The sequences are compared only in the head, so one can be encoded without the other. Padding has no effect.

    Args:
        vocab_size: number of tokens V.
        num_classes: number of classes C.
        config: sizes and options.
        pooling: "mean", "max", "cls" or "attention"; see `jaxattn.nn.Pooling`.
        head_size: width of the hidden layer of the head; None for the config's hidden_size.
        rngs: random streams for the initial values.

    Raises:
        ValueError: an unknown pooling, or sizes that do not divide.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import BackboneConfig, PairClassifier
        >>> config = BackboneConfig(num_layers=1, num_heads=2, hidden_size=16, max_length=32)
        >>> model = PairClassifier(100, 2, config, rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[[5, 6, 7, 0], [8, 9, 0, 0]]])
        >>> model(tokens, tokens > 0).shape
        (1, 2)

    Reference: the two-tower head of the Long Range Arena, arXiv 2011.04006.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        config: BackboneConfig,
        *,
        pooling: str = "mean",
        head_size: int | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(vocab_size, config, pooling=pooling, rngs=rngs)
        width = config.hidden_size
        self.hidden = head_layer(4 * width, head_size or width, ("embed", "mlp"), config, rngs)
        self.head = head_layer(head_size or width, num_classes, ("mlp", "classes"), config, rngs)

    def __call__(
        self,
        tokens: Int[ArrayLike, "B 2 T"],
        token_mask: Bool[ArrayLike, "B 2 T"] | None = None,
        *,
        tree: Tree | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B C"]:
        """Logits of the classes.

        Args:
            tokens: token ids, both sequences of each pair padded to one length.
            token_mask: True at real tokens, False at padding; None if all are real.
            tree: one tree over the T tokens, or a batch of 2 B trees in the order of `tokens` (first pair's first
                sequence, its second, …), for a mechanism that takes one at the call.
            deterministic: no dropout; None for the module's own setting (`train()` and `eval()` change it), which
                is no dropout at first.
            rngs: holds the stream "dropout" where there is dropout.

        Returns:
            Logits in float32.

        Raises:
            ValueError: not two sequences, or more tokens than `max_length`.
        """
        if tokens.ndim != 3 or tokens.shape[1] != 2:
            raise ValueError(f"tokens must have the shape (B, 2, T); got {tokens.shape}.")
        batch, _, length = tokens.shape
        flat = None if token_mask is None else token_mask.reshape(2 * batch, length)
        # One pass for both: cheaper than two calls, and statistics of random features cover both alike.
        x = self.pooled(
            tokens.reshape(2 * batch, length), flat, tree=tree, deterministic=deterministic, rngs=rngs
        )
        a, b = x[::2], x[1::2]
        return self.head(nnx.relu(self.hidden(jnp.concatenate([a, b, a * b, a - b], axis=-1))))
