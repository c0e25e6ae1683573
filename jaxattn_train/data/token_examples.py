"""Labelled texts as token ids of a pretrained encoder's tokenizer, with one label or several a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.data.tables import in_order, refuse, split_labels
from jaxattn_train.data.text_classification import LabelledTexts
from jaxattn_train.data.text_examples import check_labels, counted
from jaxattn_train.errors import UserError

CHUNK = 512


def token_examples(
    texts: LabelledTexts,
    encoder: Any,
    *,
    max_length: int,
    loss: str = "softmax",
    label_separator: str | None = None,
) -> ClassificationData:
    """Turns texts into what the training loop reads.

    Args:
        texts: the data set.
        encoder: a `TextEncoder`, or anything with its `tokenize` and `config`.
        max_length: tokens of a text, special ones included; longer texts are truncated, and a note says how many.
        loss: "softmax"; "binary" for one logit, which needs two labels; "multilabel" for any number of labels a text.
        label_separator: between the labels of a text, with "multilabel"; by default a comma.

    Returns:
        The data; its record holds the classes, the loss and `max_length`, which is what reading new texts takes.

    Raises:
        UserError: an empty text, a label that no training text has, fewer than two labels, or a limit beyond the
            encoder's.
    """
    parts = texts.parts()
    several = loss == "multilabel"
    separator = (label_separator or ",") if several else None
    known = in_order(x for label in texts.train.labels for x in split_labels(label, separator))
    if len(known) < 2 or (loss == "binary" and len(known) != 2):
        wanted = "exactly 2 labels for --loss binary" if loss == "binary" else "at least 2 labels"
        raise UserError(
            f"the training texts of {texts.name} must have {wanted}; they have "
            f"{', '.join(map(repr, known[:20])) or 'none'}."
        )
    sequences, cut = {}, {}
    for name, part in parts.items():
        rows = [split_labels(label, separator) for label in part.labels]
        check_labels(name, part, rows, known)
        names = [part.place(i, name) for i in range(len(rows))]
        ids, cut[name] = token_ids(encoder, part.texts, max_length, names=names)
        number = {label: place for place, label in enumerate(known)}
        labels: Any = [[x in row for x in known] if several else number[row[0]] for row in rows]
        sequences[name] = Sequences.of(ids, labels)
    classes = tuple(texts.class_names.get(label, label) for label in known)
    train = sequences["train"]
    counts = train.labels.sum(axis=0) if several else np.bincount(train.labels)
    shares = ", ".join(f"{c} {n / len(train):.1%}" for c, n in zip(classes[:20], counts, strict=False))
    notes = [
        f"{counted(sequences)} texts; training labels: {shares}",
        f"on average {train.lengths.mean():.0f} tokens a text, at most {max(map(int, train.lengths))}",
    ]
    if any(cut.values()):
        notes.append(f"cut at {max_length} tokens (--max-length): {counted(cut)} texts")
    notes += texts.repeated()
    return ClassificationData(
        name=texts.name,
        classes=classes,
        vocab_size=encoder.config.vocab_size,
        max_length=max_length,
        train=train,
        validation=sequences["validation"],
        test=sequences.get("test"),
        ids={name: part.ids for name, part in parts.items()},
        record={"labels": known, "classes": classes, "max_length": max_length, "loss": loss}
        | ({"separator": separator} if several else {}),
        notes=tuple(notes),
        texts={name: part.texts for name, part in parts.items()},
    )


def token_ids(
    encoder: Any, texts: Sequence[str], max_length: int, *, names: Sequence[str]
) -> tuple[list[np.ndarray], int]:
    """The token ids of each text, and how many texts were cut.

    Args:
        encoder: see `token_examples`.
        texts: to read.
        max_length: tokens of a text at most.
        names: of the texts, for error messages.

    Raises:
        UserError: empty texts, ones that are not Unicode text, or what the tokenizer does not accept.
    """
    problems = []
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str):
            problems.append(f"{name} must be a string; got {text!r}.")
        elif not text.strip():
            problems.append(f"{name} is empty; remove it.")
        elif any("\ud800" <= character <= "\udfff" for character in text):
            problems.append(f"{name} must be Unicode text; it holds a lone surrogate: {text[:40]!r}.")
    refuse(problems)
    limit = encoder.config.max_length
    if max_length > limit:
        raise UserError(
            f"--max-length must be at most the encoder's limit of {limit} tokens; got {max_length}."
        )
    found: list[np.ndarray] = []
    cut = 0
    # Chunks of similar length, because each is padded to its longest text.
    order = np.argsort([len(text) for text in texts], kind="stable")
    try:
        for start in range(0, len(texts), CHUNK):
            chunk = [texts[i] for i in order[start : start + CHUNK]]
            ids, mask = encoder.tokenize(chunk, max_length=max_length, truncation=True)
            full = mask.sum(axis=1) == max_length
            if full.any():
                cut += _too_long(
                    encoder, [text for text, at in zip(chunk, full, strict=True) if at], max_length
                )
            found += [row[real] for row, real in zip(ids, mask, strict=True)]
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error
    back = np.argsort(order, kind="stable")
    return [found[i] for i in back], cut


def _too_long(encoder: Any, texts: Sequence[str], max_length: int) -> int:
    """How many of these texts, which fill the limit, do not fit."""
    count = 0
    for text in texts:
        try:
            encoder.tokenize([text], max_length=max_length)
        except ValueError:  # the tokenizer's way to say so
            count += 1
    return count
