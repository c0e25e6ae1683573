"""A classifier of token sequences with any attention and any position encoding."""

from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.arrays import ArrayLike
from jaxattn.models.backbone import BackboneConfig
from jaxattn.models.sequence_encoder import SequenceEncoder, head_layer
from jaxattn.tree import Tree


class SequenceClassifier(SequenceEncoder):
    """Embedding, positions, pre-norm bidirectional blocks, a pool over the real tokens, and logits.

    A sequence has the same logits however far it is padded.

    Args:
        vocab_size: number of tokens V.
        num_classes: number of classes C.
        config: sizes and options.
        pooling: "mean", "max", "cls" or "attention"; see `jaxattn.nn.Pooling`.
        head_size: width of a hidden layer with ReLU before the logits; None for none.
        rngs: random streams for the initial values.

    Raises:
        ValueError: an unknown pooling, or sizes that do not divide.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import BackboneConfig, SequenceClassifier
        >>> config = BackboneConfig(num_layers=1, num_heads=2, hidden_size=16, max_length=32)
        >>> model = SequenceClassifier(100, 3, config, rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[5, 6, 7, 0, 0]])
        >>> bool(jnp.allclose(model(tokens, tokens > 0), model(tokens[:, :3]), atol=1e-5))  # padding has no effect
        True
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
        hidden = None if head_size is None else head_layer(width, head_size, ("embed", "mlp"), config, rngs)
        self.hidden = nnx.data(hidden)
        axis = "embed" if head_size is None else "mlp"
        self.head = head_layer(head_size or width, num_classes, (axis, "classes"), config, rngs)

    def __call__(
        self,
        tokens: Int[ArrayLike, "B T"],
        token_mask: Bool[ArrayLike, "B T"] | None = None,
        *,
        tree: Tree | None = None,
        positions: Int[ArrayLike, "*#B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B C"]:
        """Logits of the classes.

        Args:
            tokens: token ids.
            token_mask: True at real tokens, False at padding; None if all are real.
            tree: one tree over the T tokens, or a batch of trees, for a mechanism that takes one at the call.
            positions: positions in tokens; None for 0 to T − 1.
            deterministic: no dropout; None for the module's own setting (`train()` and `eval()` change it), which
                is no dropout at first.
            rngs: holds the stream "dropout" where there is dropout.

        Returns:
            Logits in float32.

        Raises:
            ValueError: more tokens than `max_length`, or a tree without a mechanism that takes one.
        """
        x = self.pooled(
            tokens, token_mask, tree=tree, positions=positions, deterministic=deterministic, rngs=rngs
        )
        return self.head(x if self.hidden is None else nnx.relu(self.hidden(x)))
