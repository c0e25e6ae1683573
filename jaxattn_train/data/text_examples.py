"""Labelled texts as sequences of word ids, with the tree of paragraphs, sentences and words of each."""

import dataclasses
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np

from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.sentences import SHORT, join_short, sentence_lengths
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.data.tables import Texts, in_order, refuse
from jaxattn_train.data.text_classification import LabelledTexts
from jaxattn_train.data.trees import bounded
from jaxattn_train.data.words import Vocabulary, plain, split_words
from jaxattn_train.errors import UserError

NO_WORD = ""
"""Stands for the words of a text that has none; no vocabulary knows it."""


@dataclasses.dataclass(frozen=True)
class _Read:
    """One part, cut into words."""

    words: list[list[str]]
    lengths: list[Any] | None
    cut: int
    empty: int
    joined: int


def text_examples(
    texts: LabelledTexts, *, max_length: int, vocabulary_size: int, max_branching: int | None = None
) -> ClassificationData:
    """Turns texts into what the training loop reads.

    Args:
        texts: the data set.
        max_length: words of a text; longer texts are truncated, and a note says how many.
        vocabulary_size: word ids at most, padding and unknown included; the words are the most frequent ones of the
            training texts.
        max_branching: children of a node of the trees at most; None makes no trees.

    Returns:
        The data; its record holds the words, the classes and `max_length`, which is what reading new texts takes.

    Raises:
        UserError: a validation or test text has a label that no training text has, or all labels are the same.
    """
    parts = texts.parts()
    labels = in_order(texts.train.labels)
    if len(labels) < 2:
        raise UserError(
            f"the training texts of {texts.name} must have at least 2 labels; all are {labels[0]!r}."
        )
    for name, part in parts.items():
        check_labels(name, part, [[label] for label in part.labels], labels)
    read = {name: _read(part.texts, max_length, max_branching) for name, part in parts.items()}
    vocabulary = Vocabulary.of(read["train"].words, vocabulary_size)
    sequences = {
        name: Sequences.of(
            _ids(read[name], vocabulary),
            [labels.index(x) for x in part.labels],
        )
        for name, part in parts.items()
    }
    classes = tuple(texts.class_names.get(label, label) for label in labels)
    train = sequences["train"]
    largest = max(np.bincount(sequences["validation"].labels)) / len(sequences["validation"])
    notes = [
        f"{counted(sequences)} texts; classes {', '.join(classes)}; {largest:.1%} of the validation texts are of one "
        "class",
        f"{len(vocabulary):,} ids, which know {(train.codes > 1).mean():.1%} of the training words and "
        f"{(sequences['validation'].codes > 1).mean():.1%} of the validation words; on average "
        f"{train.lengths.mean():.0f} words a text",
    ]
    for what, count in (
        (f"cut at {max_length} words (--max-length)", "cut"),
        ("without a word, read as one unknown word", "empty"),
        (f"many sentences of less than {SHORT} words, joined", "joined"),
    ):
        counts = {name: getattr(part, count) for name, part in read.items()}
        if any(counts.values()):
            notes.append(f"{what}: {counted(counts)}")
    notes += texts.repeated()
    return ClassificationData(
        name=texts.name,
        classes=classes,
        vocab_size=len(vocabulary),
        max_length=max_length,
        train=train,
        validation=sequences["validation"],
        test=sequences.get("test"),
        ids={name: part.ids for name, part in parts.items()},
        lengths=None if max_branching is None else {name: part.lengths or [] for name, part in read.items()},
        record={"words": vocabulary.words, "labels": labels, "classes": classes, "max_length": max_length},
        notes=tuple(notes),
    )


def word_ids(
    texts: Sequence[str], vocabulary: Vocabulary, max_length: int, max_branching: int | None
) -> tuple[list[np.ndarray], list[Any] | None, int]:
    """New texts as ids, nested lengths of their trees (None without `max_branching`), and how many were cut."""
    read = _read(texts, max_length, max_branching)
    return _ids(read, vocabulary), read.lengths, read.cut


def _ids(read: _Read, vocabulary: Vocabulary) -> list[np.ndarray]:
    return [vocabulary.encode(words or [NO_WORD]) for words in read.words]


def _read(texts: Sequence[str], max_length: int, max_branching: int | None) -> _Read:
    words, lengths, cut, empty, joined = [], [], 0, 0, 0
    for text in map(plain, texts):
        found = split_words(text)
        cut += len(found.words) > max_length
        kept, starts = found.words[:max_length], found.starts[:max_length]
        if max_branching is not None:
            sentences = sentence_lengths(text, starts) if kept else [[1]]
            short = join_short(sentences)
            joined += short != sentences
            lengths.append(bounded(short, max_branching))
        empty += not kept
        words.append(kept)
    return _Read(words, None if max_branching is None else lengths, cut, empty, joined)


def counted(counts: Mapping[str, int | Sized]) -> str:
    """Numbers by part, for a note.

    Examples:
        >>> counted({"train": 1000, "test": [5, 6]})
        '1,000 train, 2 test'
    """
    numbers = {name: n if isinstance(n, int) else len(n) for name, n in counts.items()}
    return ", ".join(f"{n:,} {name}" for name, n in numbers.items())


def check_labels(name: str, part: Texts, rows: Sequence[Sequence[str]], known: Sequence[str]) -> None:
    """Raises where a text has a label that no training text has.

    Args:
        name: of the part.
        part: the texts.
        rows: the labels of each.
        known: those of the training texts.
    """
    there = set(known)
    problems = [
        f"{part.place(i, name)} has the label {label!r}, which no training text has."
        for i, row in enumerate(rows)
        for label in row
        if label not in there
    ]
    if problems:
        problems[0] = f"{problems[0].removesuffix('.')}; those have {', '.join(map(repr, known[:20]))}."
    refuse(problems)
