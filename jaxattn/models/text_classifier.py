"""A text classifier: an encoder, such as a pretrained one, and a head."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.nn.heads import Head, TokenMask


class TextClassifier(nnx.Module):
    """The model that fine-tuning trains: an encoder and a head. `SequenceClassifier` is trained from scratch.

    Args:
        encoder: a module called as `encoder(input_ids, attention_mask)` -> (B, L, d), such as
            `TextEncoder.from_pretrained(...)`. If its call accepts `deterministic` and `rngs`, it gets these too.
        head: `InceptiveHead` or `PoolingHead` of width d.
        freeze_encoder: no gradient into the encoder and no dropout in it, in training too.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import TextClassifier
        >>> from jaxattn.nn import InceptiveHead
        >>> class Encoder(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.embedding = nnx.Embed(100, 16, rngs=rngs)
        ...
        ...     def __call__(self, input_ids, attention_mask):
        ...         return self.embedding(input_ids)
        >>> rngs = nnx.Rngs(0)
        >>> model = TextClassifier(Encoder(rngs), InceptiveHead(16, 3, filters=8, num_heads=4, rngs=rngs))
        >>> ids = jnp.array([[5, 6, 7, 0, 0]])
        >>> model(ids, ids > 0).shape
        (1, 3)
    """

    def __init__(self, encoder: nnx.Module, head: Head, *, freeze_encoder: bool = False):
        self.encoder, self.head, self.freeze_encoder = encoder, head, freeze_encoder

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: TokenMask = None,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits of the classes.

        Args:
            input_ids: token ids.
            attention_mask: True or 1 at real tokens; None if all are real.
            deterministic: no dropout, batch statistics unchanged; None for the modules' own settings (`train()` and
                `eval()` change them), which are True at first.
            rngs: holds the stream "dropout" where there is dropout.

        Returns:
            Logits in float32.
        """
        mask = _given(input_ids, attention_mask)
        drop: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        if self.freeze_encoder:
            hidden = jax.lax.stop_gradient(self._encode(input_ids, mask, deterministic=True))
        else:
            hidden = self._encode(input_ids, mask, **drop)
        return self.head(hidden, mask, **drop)

    def relevance(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: TokenMask = None,
        *,
        classes: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B L"]:
        """The share of each token's last hidden state in the predicted class; see the head's `relevance`.

        Args:
            input_ids: token ids.
            attention_mask: True or 1 at real tokens; None if all are real.
            classes: which logit of each row; None for the largest.

        Returns:
            Shares that sum to 1 over the real tokens.
        """
        mask = _given(input_ids, attention_mask)
        hidden = self._encode(input_ids, mask, deterministic=True)
        return self.head.relevance(hidden, mask, classes=classes)

    def _encode(self, input_ids: Array, mask: Array, **drop: Any) -> Array:
        accepted = inspect.signature(type(self.encoder).__call__).parameters
        return self.encoder(input_ids, mask, **{name: drop[name] for name in drop if name in accepted})


def _given(input_ids: Array, attention_mask: Array | None) -> Array:
    return jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
