"""Text of the Long Range Arena: is a review on IMDB positive? Bytes, cut to 4,000.

The published pipeline trains on all 25,000 reviews of the training part and validates on the test part; here 2,500
training reviews are held out for validation (`text_classification.load_imdb`), so that the test part is read only at
the end. Ids are as published: a byte's value + 1, and 0 for padding.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from jaxattn_train.data.sequences import Sequences, Splits
from jaxattn_train.data.text_classification import load_imdb

MAX_LENGTH = 4000
VOCABULARY_SIZE = 257


def load_text(data_path: str | None = None, *, max_length: int = MAX_LENGTH) -> Splits:
    """Reads IMDB as bytes: from --data-path, JAXATTN_DATA, the cache or a download, see `load_imdb`.

    Args:
        data_path: value of --data-path.
        max_length: bytes of a text; longer ones are truncated.

    Returns:
        The three parts; the facts of `byte_splits`.

    Raises:
        UserError: nothing is found and nothing can be downloaded, or what is found is not IMDB.
    """
    imdb = load_imdb(data_path)

    def examples(name: str) -> Iterator[tuple[int, bytes]]:
        part = imdb.parts()[name]
        for text, label in zip(part.texts, part.labels, strict=True):
            yield int(label), text.encode()

    return byte_splits("IMDB", {name: examples(name) for name in imdb.parts()}, max_length)


def byte_splits(
    source: str, parts: Mapping[str, Iterable[tuple[int, *tuple[bytes, ...]]]], max_length: int
) -> Splits:
    """Three parts of byte strings, and the facts: each part's hash, and how many texts and bytes were cut.

    Args:
        source: where they come from.
        parts: train, validation and test, each of examples: a label, then one or two texts.
        max_length: bytes of a text; longer ones are truncated.
    """
    made = {name: byte_sequences(examples, max_length) for name, examples in parts.items()}
    facts = {
        "source": source,
        "sha256": {name: part.sha256() for name, (part, _) in made.items()},
        "cut_texts_and_bytes": {name: list(cut) for name, (_, cut) in made.items()},
    }
    train, validation, test = (part for part, _ in made.values())
    return Splits(train, validation, test, facts)


def byte_sequences(
    examples: Iterable[tuple[int, *tuple[bytes, ...]]], max_length: int
) -> tuple[Sequences, tuple[int, int]]:
    """Labelled byte strings as sequences, and how many texts and bytes were cut.

    Examples:
        >>> part, cut = byte_sequences([(0, b"long text"), (1, b"short")], max_length=5)
        >>> part.lengths.tolist(), cut
        ([5, 5], (1, 4))
    """
    codes = bytearray()
    found: dict[bytes, int] = {}  # papers occur in many pairs: each is kept once
    starts, sizes, labels, lost = [], [], [], []
    for label, *texts in examples:
        kept = [text[:max_length] for text in texts]
        for text in kept:
            if text not in found:
                found[text] = len(codes)
                codes += text
        labels.append(label)
        starts.append([found[text] for text in kept])
        sizes.append(list(map(len, kept)))
        lost += [len(text) - max_length for text in texts if len(text) > max_length]
    part = Sequences(
        np.frombuffer(bytes(codes), np.uint8),
        np.array(starts, np.int64),
        np.array(sizes, np.int32),
        np.array(labels, np.int32),
        first_id=1,
    )
    return part, (len(lost), sum(lost))
