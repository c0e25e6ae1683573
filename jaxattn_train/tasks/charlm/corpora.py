"""Texts for language models: one that ships with Python, tinyshakespeare, or the user's file."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from jaxattn_train.data.download import RemoteFile
from jaxattn_train.data.files import obtain, read_text
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.charlm.config import DataConfig

TINYSHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINYSHAKESPEARE_FILE = "tinyshakespeare.txt"
VALIDATION_SHARE = 0.1
BYTES = "".join(map(chr, range(256)))
"""The vocabulary of models of bytes: no text of characters has this one."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text as numbers: the first 90 % by position for training, the rest for validation."""

    name: str
    vocabulary: str
    """Every character that occurs, sorted, or `BYTES`; the id of a character is its place here."""
    train: np.ndarray
    validation: np.ndarray
    sha256: str


def load_corpus(config: DataConfig, *, context_length: int) -> Corpus:
    """Reads the configured text and turns it into character ids.

    Args:
        config: which text.
        context_length: of a window; both parts must hold at least one window and what follows it.

    Returns:
        The corpus, ids as int32.

    Raises:
        UserError: the text is missing, unreadable, not UTF-8, not the expected one, empty or too short.
    """
    name, text = _load_text(config)
    if not text:
        raise UserError(f"the corpus {name} is empty.")
    vocabulary = BYTES if config.units == "bytes" else "".join(sorted(set(text)))
    ids = encode(text, vocabulary)
    split = len(ids) - int(len(ids) * VALIDATION_SHARE)
    window = context_length + 1
    if len(ids) - split < window or split < window:
        raise UserError(
            f"the corpus {name} is too short: {len(ids)} {config.units} leave {len(ids) - split} for validation, "
            f"but one window takes {window}; use a text of at least {window * 10} {config.units} or a smaller "
            "--context-length."
        )
    digest = hashlib.sha256(text.encode()).hexdigest() + (" in bytes" if config.units == "bytes" else "")
    return Corpus(name, vocabulary, ids[:split], ids[split:], digest)


def encode(text: str, vocabulary: str) -> np.ndarray:
    """Ids of the characters, or of the bytes, of `text`, int32.

    Raises:
        UserError: naming the characters that `vocabulary` does not hold.

    Examples:
        >>> encode("abba", "ab").tolist()
        [0, 1, 1, 0]
    """
    if vocabulary == BYTES:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    ids = {character: i for i, character in enumerate(vocabulary)}
    unknown = sorted(set(text) - set(ids))
    if unknown:
        raise UserError(
            f"the model does not know the characters {', '.join(map(repr, unknown))}; it knows {vocabulary!r}."
        )
    return np.fromiter((ids[c] for c in text), np.int32, len(text))


def decode(ids: np.ndarray, vocabulary: str) -> str:
    """The text of ids: the inverse of `encode`, where bytes are valid UTF-8."""
    if vocabulary == BYTES:
        return np.asarray(ids).astype(np.uint8).tobytes().decode(errors="replace")
    return "".join(vocabulary[i] for i in ids)


def _load_text(config: DataConfig) -> tuple[str, str]:
    if config.data_path is not None and (config.text_file is not None or config.corpus != "tinyshakespeare"):
        raise UserError(
            "--data-path is for --corpus tinyshakespeare; for a text of your own use --text-file."
        )
    if config.text_file is not None:
        return Path(config.text_file).name, read_text(Path(config.text_file))
    if config.corpus == "reference":
        from pydoc_data.topics import topics

        text = "".join(topics[key] for key in sorted(topics))
        return "reference (the language reference inside Python)", text
    return "tinyshakespeare", _tinyshakespeare(config.data_path)


def _tinyshakespeare(data_path: str | None) -> str:
    file = RemoteFile(
        TINYSHAKESPEARE_FILE,
        TINYSHAKESPEARE_URL,
        TINYSHAKESPEARE_SHA256,
        what="the tinyshakespeare text",
        offline="Three ways without a network: --corpus reference "
        f"(ships with Python); put {TINYSHAKESPEARE_FILE} into a folder and set JAXATTN_DATA to it, or give "
        "--data-path; or --text-file PATH for any text of yours.",
        otherwise=", or use it as it is with --text-file",
    )
    return read_text(obtain(file, data_path))
