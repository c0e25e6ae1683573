"""Token ids of texts, by the tokenizer.json of a model."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.extra import optional

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
FILES = (TOKENIZER, SETTINGS, "special_tokens_map.json")
# Settings of tokenizer_config.json that override a BertNormalizer in tokenizer.json: its name of each, and a default.
OVERRIDES: dict[str, tuple[str, bool | None]] = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
# Classes of transformers that take tokenizer.json as it is.
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
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

    @property
    def mask_id(self) -> int | None:
        """The id of [MASK]; None where there is none."""
        files = dict(self.files)
        said = json.loads(files.get(SETTINGS, "{}")).get("mask_token")
        names = (said["content"] if isinstance(said, dict) else said, "[MASK]", "<mask>")
        tokenizer = _tokenizer(files[TOKENIZER], files.get(SETTINGS, "{}"), None)
        ids = [tokenizer.token_to_id(name) for name in names if name]
        return next((number for number in ids if number is not None), None)

    def save(self, folder: Path) -> None:
        """Writes the files as they were."""
        for name, content in self.files:
            (folder / name).write_text(content, encoding="utf-8")

    def encode(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None,
        config: EncoderConfig,
        *,
        max_length: int | None,
        truncation: bool,
        pad_to: int | None,
    ) -> tuple[Ids, Mask, Ids]:
        """Ids, mask of real tokens and token types; see `TextEncoder.tokenize` and `tokenize_pairs`."""
        rows = self.rows(texts, second, config, max_length=max_length, truncation=truncation)
        lengths = [len(row.ids) for row in rows]
        _check_limit("pad_to", pad_to, config)
        width = max(lengths) if pad_to is None else pad_to
        if max(lengths) > width:
            raise ValueError(
                f"pad_to must be at least the longest text's {max(lengths)} tokens (texts[{np.argmax(lengths)}]); "
                f"got {pad_to}."
            )
        ids, mask = pad([row.ids for row in rows], width, config.pad_token_id)
        return ids, mask, pad([row.types for row in rows], width, 0)[0]

    def rows(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None,
        config: EncoderConfig,
        *,
        max_length: int | None,
        truncation: bool,
    ) -> "list[Tokens]":
        """The tokens of every text or pair, not padded; see `TextEncoder.tokenize` and `tokenize_pairs`."""
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"texts must be a list of at least one text; got {texts!r}.")
        columns = {"texts": texts} if second is None else {"first": texts, "second": second}
        for name, column in columns.items():
            for index, text in enumerate(column):
                _check_text(f"{name}[{index}]", text)
        _check_limit("max_length", max_length, config)
        limit = config.max_length if max_length is None else max_length
        files = dict(self.files)
        tokenizer = _tokenizer(files[TOKENIZER], files.get(SETTINGS, "{}"), limit if truncation else None)
        inputs = texts if second is None else zip(texts, second, strict=True)
        found = [
            Tokens(
                np.array(encoding.ids, np.int32),
                np.array(encoding.type_ids, np.int32),
                np.array(encoding.offsets, np.int32).reshape(-1, 2),
                np.array([-1 if word is None else word for word in encoding.word_ids], np.int32),
            )
            for encoding in tokenizer.encode_batch(list(inputs))
        ]
        for index, (ids, *_) in enumerate(found):
            if len(ids) > limit:
                raise ValueError(
                    f"texts[{index}] has {len(ids)} tokens, and the limit is {limit}. Split it, or cut long texts "
                    "with truncation=True."
                )
            if ids.max(initial=0) >= config.vocab_size:
                raise ValueError(
                    f"tokenizer.json is not this model's: it gave the id {ids.max()}, and the vocabulary has "
                    f"{config.vocab_size}."
                )
        return found


def needed(tokenizer: TextTokenizer | None) -> TextTokenizer:
    """Raises if there is none."""
    if tokenizer is None:
        raise ValueError(
            "tokenize needs the tokenizer.json of the model, and its folder has none. With transformers, "
            "AutoTokenizer.from_pretrained(name).save_pretrained(folder) writes one for most models."
        )
    return tokenizer


class Tokens(NamedTuple):
    """The tokens of one text or pair."""

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    """First character and the one after the last, (tokens, 2); both 0 for special tokens."""
    words: np.ndarray
    """Which word of the text each token is a part of; −1 for special tokens."""


def pad(rows: Sequence[np.ndarray], width: int, value: int) -> tuple[Ids, Mask]:
    """Rows of integers as one array (B, width), filled with `value`, and True where they are."""
    mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    padded = np.full(mask.shape, value, np.int32)
    padded[mask] = np.concatenate(rows)
    return padded, mask


def _check_limit(name: str, value: int | None, config: EncoderConfig) -> None:
    if value is not None and not 1 <= value <= config.max_length:
        raise ValueError(
            f"{name} must be between 1 and the model's limit of {config.max_length}; got {value}."
        )


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string; got {text!r}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be text that UTF-8 can encode; got the lone surrogate {text[error.start]!r} at character "
            f"{error.start}. text.encode('utf-8', 'replace').decode() puts '?' in its place."
        ) from error


@functools.lru_cache(maxsize=8)
def _tokenizer(content: str, settings: str, truncate_to: int | None) -> Any:
    """The tokenizer, without the padding and truncation of its file: those are arguments of `encode`."""
    library = optional("tokenizers")
    try:
        tokenizer = library.Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{TOKENIZER} cannot be read: {error}") from error
    normalizer = json.loads(content).get("normalizer") or {}
    overrides = _overrides(normalizer, settings)
    if overrides:
        kept = {name: value for name, value in normalizer.items() if name != "type"}
        tokenizer.normalizer = library.normalizers.BertNormalizer(**(kept | overrides))
    tokenizer.no_padding()
    if truncate_to is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(truncate_to)
    return tokenizer


def _overrides(normalizer: dict[str, Any], content: str) -> dict[str, Any]:
    """The settings of a BertNormalizer in which tokenizer_config.json differs; it has precedence, as in transformers.

    Raises:
        ValueError: it is not a JSON object, or differs about the case from a normalizer of another type.
    """
    try:
        settings = dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{SETTINGS} must hold a JSON object: {error}") from error
    if not settings or settings.get("tokenizer_class") in GENERIC:
        return {}
    if normalizer.get("type") == "BertNormalizer":
        wanted = {ours: settings.get(name, default) for name, (ours, default) in OVERRIDES.items()}
        return {name: value for name, value in wanted.items() if value != normalizer.get(name)}
    written = json.dumps(normalizer)
    lowers = '"type": "Lowercase"' in written or '"lowercase": true' in written
    if settings.get("do_lower_case", lowers) != lowers:
        raise ValueError(
            f"do_lower_case in {SETTINGS} is {settings['do_lower_case']}, and the normalizer of {TOKENIZER} "
            f"{'lowers' if lowers else 'keeps'} the case; save the tokenizer again so that they agree."
        )
    return {}
