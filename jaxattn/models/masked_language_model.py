"""A pretrained encoder with its masked-language-modelling head."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.core.arrays import ArrayLike, TokenMask
from jaxattn.encoders.heads.files import is_tied, load_model, save_model
from jaxattn.encoders.heads.modules import MaskedHead
from jaxattn.encoders.heads.names import MASKED, HeadNames
from jaxattn.encoders.text_encoder import TextEncoder


class MaskedLanguageModel(nnx.Module):
    """Logits of the words that may stand at every token.

    Args:
        encoder: token ids to one vector a token.
        names: the names of the head's layers in a checkpoint; None for the family's first.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import EncoderConfig, MaskedLanguageModel, TextEncoder
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
        >>> layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = EncoderConfig.from_dict({"model_type": "bert", **sizes, **layers})
        >>> model = MaskedLanguageModel(TextEncoder(config, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        >>> model(jnp.array([[2, 7, 9, 3]])).shape, model(jnp.array([[2, 7, 9, 3]]), places=jnp.array([[1]])).shape
        ((1, 4, 50), (1, 1, 50))
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
        self.names = MASKED[config.model_type][0] if names is None else names
        self.encoder = encoder
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = MaskedHead(config, self.names, tied=is_tied(config), **options)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> "MaskedLanguageModel":
        """Loads a checkpoint with its head, whose last layer is the table of words where config.json ties the two.

        Args:
            name_or_path: a folder, or the name of a repository of the Hugging Face hub, which is downloaded.
            **options: dtype, param_dtype, revision, local_files_only and cache_dir, as for
                `TextEncoder.from_pretrained`.

        Raises:
            ValueError: a checkpoint without this head, or what `TextEncoder.from_pretrained` refuses.
        """
        return load_model(name_or_path, MASKED, cls, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and the tokenizer's files, as transformers reads them."""
        save_model(self, self.names, Path(folder))

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B L"],
        attention_mask: TokenMask = None,
        *,
        places: Int[ArrayLike, "B K"] | None = None,
        token_type_ids: Int[ArrayLike, "B L"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B K V"]:
        """Logits in float32.

        Args:
            input_ids: token ids, with those of [MASK] where words are asked for.
            attention_mask: True (or 1) at tokens; None if nothing is padding.
            places: of the tokens whose logits are computed; None for all L.
            token_type_ids: see `TextEncoder`.
            deterministic: see `TextEncoder`.
            rngs: see `TextEncoder`.
        """
        hidden = self.encoder(
            input_ids, attention_mask, token_type_ids=token_type_ids, deterministic=deterministic, rngs=rngs
        )
        if places is not None:
            hidden = jnp.take_along_axis(hidden, jnp.asarray(places)[..., None], axis=1)
        return self.head(hidden, self.encoder.embeddings.word[...])
