"""Texts with labels out of tables: tab-separated, comma-separated or JSON lines."""

import collections
import csv
import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from train.data.files import read_text
from train.errors import UserError


@dataclasses.dataclass(frozen=True)
class Texts:
    """One part of a data set."""

    texts: list[str]
    labels: list[str]
    ids: list[str]
    """Names of the texts, for the file of predictions."""


def read_table(path: Path, *, text_column: str, label_column: str | None) -> Texts:
    """Reads .tsv, .csv or .jsonl, also compressed (.gz, .xz), UTF-8.

    A .tsv has one row a line and no quoting; a .csv is quoted as spreadsheets do; both begin with the names of
    the columns. A column (or field) `id` names the rows; without one they are numbered from 0.

    Args:
        path: the file.
        text_column: name of the column of texts.
        label_column: name of the column of labels; values are read as strings. None for texts without labels.

    Raises:
        UserError: the file cannot be read, is of another kind, or a row lacks a column; it says which.
    """
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix not in (".gz", ".xz")), "")
    if kind not in _READERS:
        raise UserError(f"{path} must end in {', '.join(_READERS)}, optionally followed by .gz or .xz.")
    texts, labels, ids = [], [], []
    try:
        # Spreadsheets put a byte order mark in front, which is no part of the first column's name.
        file = io.StringIO(read_text(path).removeprefix("\ufeff"), newline="")
        for number, (line, row) in enumerate(_READERS[kind](file, path)):
            for flag, column in (("--text-column", text_column), ("--label-column", label_column)):
                if column is not None and row.get(column) is None:
                    there = ", ".join(map(repr, row))
                    raise UserError(
                        f"{flag} must be a column of {path}; line {line} has no {column!r}, but {there}."
                    )
            texts.append(str(row[text_column]))
            labels.append("" if label_column is None else str(row[label_column]).strip())
            ids.append(str(row.get("id", number)))
    except csv.Error as error:
        raise UserError(f"cannot read {path}: {error}.") from error
    if not texts:
        raise UserError(f"{path} holds no texts.")
    return Texts(texts, labels, ids)


def _tsv(file: IO[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    header: list[str] | None = None
    for number, line in enumerate(file, 1):
        cells = line.rstrip("\r\n").split("\t")
        if header is None:
            header = cells
        elif line.strip():
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, line {number}: {len(cells)} columns; the first line has {len(header)}."
                )
            yield number, dict(zip(header, cells, strict=True))


def _csv(file: IO[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(1 << 30)  # the default refuses texts of more than 131,072 characters
    reader = csv.DictReader(file, strict=True)
    for row in reader:
        if None in row:
            raise UserError(f"{path}, line {reader.line_num}: more columns than the first line has.")
        yield reader.line_num, row


def _jsonl(file: IO[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} must be a JSON object; got {line.strip()[:40]!r}.")
        yield number, row


_READERS: dict[str, Callable[[IO[str], Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".tsv": _tsv,
    ".csv": _csv,
    ".jsonl": _jsonl,
}


def split_labels(label: str, separator: str | None) -> list[str]:
    """The labels of a text from its column; without a separator there is one.

    Examples:
        >>> split_labels("a; b", ";"), split_labels("a; b", None)
        (['a', 'b'], ['a; b'])
    """
    return [label] if separator is None else [x for x in map(str.strip, label.split(separator)) if x]


def split_by_hash(texts: Texts, count: int, *, separator: str | None = None) -> tuple[Texts, Texts]:
    """The others, and the `count` texts with the smallest SHA-256 of their names; both in their order.

    A text stays with the others if it is their last one with some label: fewer are then split off.

    Args:
        texts: to split.
        count: texts of the second part.
        separator: between several labels of a text; None for one.
    """
    ranked = sorted(range(len(texts.ids)), key=lambda i: hashlib.sha256(texts.ids[i].encode()).hexdigest())
    labels = [set(split_labels(label, separator)) for label in texts.labels]
    left = collections.Counter(itertools.chain.from_iterable(labels))
    chosen: set[int] = set()
    for i in ranked:
        if len(chosen) < count and all(left[label] > 1 for label in labels[i]):
            chosen.add(i)
            left.subtract(labels[i])
    places = range(len(texts.ids))
    return (
        take(texts, [i for i in places if i not in chosen]),
        take(texts, [i for i in places if i in chosen]),
    )


def take(texts: Texts, places: Iterable[int]) -> Texts:
    """The texts at the given places, in their order."""
    chosen = list(places)
    return Texts(*([column[i] for i in chosen] for column in (texts.texts, texts.labels, texts.ids)))
