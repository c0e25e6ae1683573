"""A text classifier: an encoder, such as a pretrained one, and a head."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.core.arrays import ArrayLike, TokenMask
from jaxattn.encoders.heads.files import labels_of, load_model, save_model
from jaxattn.encoders.heads.modules import PublishedHead
from jaxattn.encoders.heads.names import SEQUENCE, HeadNames
from jaxattn.encoders.text_encoder import TextEncoder
from jaxattn.models.batching import in_batches, tokenized
from jaxattn.nn.heads import Head

PROBLEMS = {
    "softmax": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
"""transformers' names of what the logits mean."""


class TextClassifier(nnx.Module):
    """The model that fine-tuning trains: an encoder and a head. `SequenceClassifier` is trained from scratch.

    Args:
        encoder: a module called as `encoder(input_ids, attention_mask)` -> (B, L, d), such as
            `TextEncoder.from_pretrained(...)`. If its call accepts `deterministic` and `rngs`, it gets these too.
        head: `InceptiveHead`, `PoolingHead` or `PublishedHead` of width d.
        freeze_encoder: no gradient into the encoder and no dropout in it, in training too.

    Attributes:
        labels: names of the classes; empty where nothing has set them.
        loss: what the logits mean, "softmax", "binary", "multilabel" or "regression"; see `predict`.

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
        self.labels: tuple[str, ...] = ()
        self.loss = "softmax"

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> "TextClassifier":
        """Loads a published classifier with its head.

        Args:
            name_or_path: a folder, or the name of a repository of the Hugging Face hub, which is downloaded.
            **options: dtype, param_dtype, revision, local_files_only and cache_dir, as for
                `TextEncoder.from_pretrained`.

        Returns:
            The model; its `labels` are the names of the classes.

        Raises:
            ValueError: a checkpoint without this head, or what `TextEncoder.from_pretrained` refuses.
        """

        def build(encoder: TextEncoder, names: HeadNames, **more: Any) -> TextClassifier:
            config, source = encoder.config, encoder.config.to_dict()
            labels = labels_of(config)
            model = cls(encoder, PublishedHead(config, names, len(labels), **more))
            model.labels = labels
            if source.get("problem_type") == PROBLEMS["multilabel"]:
                model.loss = "multilabel"
            elif source.get("problem_type") == PROBLEMS["regression"] or len(labels) == 1:
                model.loss = "regression"
            return model

        return load_model(name_or_path, SEQUENCE, build, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and the tokenizer's files, as transformers reads them.

        Args:
            folder: created if it does not exist.

        Raises:
            ValueError: a head that transformers does not have, outputs that are not one a label, or what
                `TextEncoder.save_pretrained` refuses. `model.encoder.save_pretrained` writes the encoder alone.
        """
        if not isinstance(self.head, PublishedHead) or not isinstance(self.encoder, TextEncoder):
            raise ValueError(
                "save_pretrained writes a TextEncoder with the head that transformers has for its family "
                f"(PublishedHead; finetune --head published); got {type(self.encoder).__name__} with "
                f"{type(self.head).__name__}. model.encoder.save_pretrained writes the encoder alone."
            )
        outputs = self.head.out.out_features
        if self.loss not in PROBLEMS or len(self.labels) != outputs:
            raise ValueError(
                f"labels must be one for each of the head's {outputs} outputs, and loss one of "
                f"{', '.join(PROBLEMS)}; got {self.labels!r} and {self.loss!r}."
            )
        numbered = {str(number): label for number, label in enumerate(self.labels)}
        settings = {
            "id2label": numbered,
            "label2id": {label: int(number) for number, label in numbered.items()},
            "problem_type": PROBLEMS[self.loss],
            "architectures": None,  # of the checkpoint that the encoder came from
        }
        save_model(self, self.head.names, Path(folder), settings)

    def predict(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> Float[np.ndarray, "B C"]:
        """Probabilities of the classes of texts, or of pairs of texts.

        Args:
            texts: any number of strings; those beyond the encoder's limit are cut.
            second: as many second texts; None without.
            batch_size: texts at a time.
            progress: called after each batch with the number of texts done and of all texts.

        Returns:
            softmax of the logits in float32; for the loss "multilabel" their sigmoid, for "binary" that of one logit
            as two classes, for "regression" the logits themselves.

        Raises:
            ValueError: a text that is none, numbers of texts that differ, or an encoder without tokenizer.
        """
        if not isinstance(self.encoder, TextEncoder):
            raise ValueError(f"encoder must be a TextEncoder; got {type(self.encoder).__name__}.")
        if isinstance(texts, str) or (second is not None and len(second) != len(texts)):
            raise ValueError(
                f"texts must be a list, and second one as long; got {len(texts)} and {second!r}."
            )
        limit = self.encoder.config.max_length
        types = second is not None and self.encoder.config.type_vocab_size > 1
        rows = tokenized(self.encoder, texts, second, max_length=limit)
        outcomes: dict[str, Callable[[Array], Array]] = {
            "softmax": jax.nn.softmax,
            "multilabel": jax.nn.sigmoid,
            "binary": lambda x: jax.nn.sigmoid(jnp.concatenate([-x, x], axis=-1)),
            "regression": lambda x: x,
        }
        found: list[Any] = [None] * len(rows)
        for chosen, logits in in_batches(self, rows, limit, batch_size, progress, token_types=types):
            for number, row in zip(chosen, np.asarray(outcomes[self.loss](jnp.asarray(logits))), strict=True):
                found[number] = row
        return np.stack(found) if found else np.zeros((0, len(self.labels)), np.float32)

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B L"],
        attention_mask: TokenMask = None,
        *,
        token_type_ids: Int[ArrayLike, "B L"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits of the classes.

        Args:
            input_ids: token ids.
            attention_mask: True or 1 at real tokens; None if all are real.
            token_type_ids: tell the texts of a pair apart, for encoders whose call accepts them; None for zeros.
            deterministic: no dropout, batch statistics unchanged; None for the modules' own settings (`train()` and
                `eval()` change them), which are True at first.
            rngs: holds the stream "dropout" where there is dropout.

        Returns:
            Logits in float32.
        """
        ids, mask = _given(input_ids, attention_mask)
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        drop: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        if self.freeze_encoder:
            hidden = jax.lax.stop_gradient(self._encode(ids, mask, deterministic=True, **types))
        else:
            hidden = self._encode(ids, mask, **types, **drop)
        return self.head(hidden, mask, **drop)

    def relevance(
        self,
        input_ids: Int[ArrayLike, "B L"],
        attention_mask: TokenMask = None,
        *,
        classes: Int[ArrayLike, " B"] | None = None,
    ) -> Float[Array, "B L"]:
        """The share of each token's last hidden state in the predicted class; see the head's `relevance`.

        Args:
            input_ids: token ids.
            attention_mask: True or 1 at real tokens; None if all are real.
            classes: which logit of each row; None for the largest.

        Returns:
            Shares that sum to 1 over the real tokens.
        """
        ids, mask = _given(input_ids, attention_mask)
        hidden = self._encode(ids, mask, deterministic=True)
        return self.head.relevance(hidden, mask, classes=classes)

    def _encode(self, input_ids: Array, mask: Array, **drop: Any) -> Array:
        accepted = inspect.signature(type(self.encoder).__call__).parameters
        if "token_type_ids" in drop and "token_type_ids" not in accepted:
            raise ValueError(f"token_type_ids must be None: {type(self.encoder).__name__} accepts none.")
        return self.encoder(input_ids, mask, **{name: drop[name] for name in drop if name in accepted})


def _given(input_ids: ArrayLike, attention_mask: TokenMask) -> tuple[Array, Array]:
    mask = jnp.ones(input_ids.shape, bool) if attention_mask is None else jnp.asarray(attention_mask) != 0
    return jnp.asarray(input_ids), mask
