"""A pretrained encoder with a published head that labels every token."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.core.arrays import ArrayLike, TokenMask
from jaxattn.encoders.heads.files import labels_of, load_model
from jaxattn.encoders.heads.modules import TokenHead
from jaxattn.encoders.heads.names import TOKENS, HeadNames
from jaxattn.encoders.text_encoder import TextEncoder
from jaxattn.models.batching import in_batches, tokenized


class TokenLabel(NamedTuple):
    """The label of one token."""

    start: int
    """First character in the text."""
    end: int
    """Character after the last."""
    label: str
    """The likeliest."""
    probability: float
    """Of that label."""


class TokenClassifier(nnx.Module):
    """Logits of the classes of every token, as in named-entity recognition.

    Args:
        encoder: token ids to one vector a token.
        names: the names of the head's layers in a checkpoint; None for the family's first.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Attributes:
        labels: names of the classes, from id2label of config.json.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import EncoderConfig, TextEncoder, TokenClassifier
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "id2label": {"0": "O", "1": "PER"}}
        >>> layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = EncoderConfig.from_dict({"model_type": "bert", **sizes, **layers})
        >>> model = TokenClassifier(TextEncoder(config, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        >>> model.labels, model(jnp.array([[2, 7, 9, 3]])).shape
        (('O', 'PER'), (1, 4, 2))
    """

    def __init__(
        self,
        encoder: TextEncoder,
        names: HeadNames | None = None,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        config = encoder.config
        names = TOKENS[config.model_type][0] if names is None else names
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.labels = labels_of(config)
        self.encoder = encoder
        self.head = TokenHead(config, names, len(self.labels), **options)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> "TokenClassifier":
        """Loads a published model; the arguments are those of `MaskedLanguageModel.from_pretrained`."""
        return load_model(name_or_path, TOKENS, cls, **options)

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B L"],
        attention_mask: TokenMask = None,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B L C"]:
        """Logits in float32; the arguments are those of `TextEncoder`."""
        hidden = self.encoder(input_ids, attention_mask, deterministic=deterministic, rngs=rngs)
        return self.head(hidden, deterministic=deterministic, rngs=rngs)

    def predict(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[TokenLabel]]:
        """The label of every token but the special ones; the arguments are those of `SentenceEncoder.encode`.

        Texts beyond the model's limit are cut.
        """
        limit = self.encoder.config.max_length
        rows = tokenized(self.encoder, texts, max_length=limit)
        labels: list[list[TokenLabel]] = [[] for _ in rows]
        for chosen, logits in in_batches(self, rows, limit, batch_size, progress):
            chances = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
            for number, found in zip(chosen, chances, strict=True):
                labels[number] = [
                    TokenLabel(int(start), int(end), self.labels[chance.argmax()], float(chance.max()))
                    for (start, end), chance in zip(rows[number].offsets, found, strict=False)
                    if end > start
                ]
        return labels
