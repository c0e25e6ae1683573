"""Texts to token ids, by the tokenizer.json of a model."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from jaxattn.encoders.extra import optional

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
Ids = Int32[np.ndarray, "B L"]
Mask = Bool[np.ndarray, "B L"]


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """The contents of a model's tokenizer files, by name; (name, content) pairs keep it hashable."""

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
        texts: Sequence[str] | Sequence[tuple[str, str]],
        *,
        limit: int,
        truncation: bool,
        pad_to: int | None,
        pad_token_id: int,
        vocab_size: int,
    ) -> tuple[Ids, Mask, Ids]:
        """Ids, mask of real tokens and token types; the arguments are those of `TextEncoder.tokenize`."""
        content = dict(self.files)["tokenizer.json"]
        tokenizer = _tokenizer(content, limit if truncation else None)
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
        ids = np.full((len(lengths), width), pad_token_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        types = np.zeros(ids.shape, np.int32)
        for row, encoding in enumerate(encodings):
            ids[row, : lengths[row]] = encoding.ids
            mask[row, : lengths[row]] = True
            types[row, : lengths[row]] = encoding.type_ids
        if ids.max(initial=0) >= vocab_size:
            raise ValueError(
                f"tokenizer.json is not this model's: it gave the id {ids.max()}, and the vocabulary has "
                f"{vocab_size}."
            )
        return ids, mask, types


@functools.lru_cache(maxsize=8)
def _tokenizer(content: str, truncate_to: int | None) -> Any:
    """The tokenizer; what its file says about padding and cutting does not apply, the caller's words do."""
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
