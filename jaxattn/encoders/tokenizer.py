"""Token ids of texts, by the tokenizer.json of a model."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.extra import optional

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
Ids = Int32[np.ndarray, "B L"]
Mask = Bool[np.ndarray, "B L"]


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """The contents of a model's tokenizer files, as hashable (name, content) pairs."""

    files: tuple[tuple[str, str], ...]

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer | None":
        """The files of a folder; None where it has no tokenizer.json."""
        if not (folder / FILES[0]).is_file():
            return None
        present = [name for name in FILES if (folder / name).is_file()]
        return cls(tuple((name, (folder / name).read_text(encoding="utf-8")) for name in present))

    def save(self, folder: Path) -> None:
        """Writes the files as they were."""
        for name, content in self.files:
            (folder / name).write_text(content, encoding="utf-8")

    def encode(
        self,
        texts: Sequence[Any],
        config: EncoderConfig,
        *,
        max_length: int | None,
        truncation: bool,
        pad_to: int | None,
    ) -> tuple[Ids, Mask, Ids]:
        """Ids, mask of real tokens and token types; see `TextEncoder.tokenize` and `tokenize_pairs`."""
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"texts must be a list of at least one text; got {texts!r}.")
        for name, value in (("max_length", max_length), ("pad_to", pad_to)):
            if value is not None and not 1 <= value <= config.max_length:
                raise ValueError(
                    f"{name} must be between 1 and the model's limit of {config.max_length}; got {value}."
                )
        limit = config.max_length if max_length is None else max_length
        tokenizer = _tokenizer(dict(self.files)["tokenizer.json"], limit if truncation else None)
        encodings = tokenizer.encode_batch(list(texts))
        lengths = [len(encoding.ids) for encoding in encodings]
        for index, length in enumerate(lengths):
            if length > limit:
                raise ValueError(
                    f"texts[{index}] has {length} tokens, and the limit is {limit}. Split it, or cut long texts with "
                    "truncation=True."
                )
        width = max(lengths) if pad_to is None else pad_to
        if max(lengths) > width:
            raise ValueError(
                f"pad_to must be at least the longest text's {max(lengths)} tokens (texts[{np.argmax(lengths)}]); "
                f"got {pad_to}."
            )
        ids = np.full((len(lengths), width), config.pad_token_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        types = np.zeros(ids.shape, np.int32)
        for row, encoding in enumerate(encodings):
            ids[row, : lengths[row]] = encoding.ids
            mask[row, : lengths[row]] = True
            types[row, : lengths[row]] = encoding.type_ids
        if ids.max(initial=0) >= config.vocab_size:
            raise ValueError(
                f"tokenizer.json is not this model's: it gave the id {ids.max()}, and the vocabulary has "
                f"{config.vocab_size}."
            )
        return ids, mask, types


@functools.lru_cache(maxsize=8)
def _tokenizer(content: str, truncate_to: int | None) -> Any:
    """The tokenizer, without the padding and truncation of its file: those are arguments of `encode`."""
    library = optional("tokenizers")
    try:
        tokenizer = library.Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_padding()
    if truncate_to is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(truncate_to)
    return tokenizer
