"""Texts with labels out of tables: tab-separated, comma-separated or JSON lines."""

import collections
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxattn_train.data.files import read_text
from jaxattn_train.errors import UserError

SHOWN = 10
"""Problems of a file that an error lists; the others are counted."""
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}


@dataclasses.dataclass(frozen=True)
class Texts:
    """One part of a data set."""

    texts: list[str]
    labels: list[str]
    ids: list[str]
    """Names of the texts, for the file of predictions."""
    places: list[str] = dataclasses.field(default_factory=list, compare=False)
    """FILE:LINE of each text, for error messages; empty where there is no such file."""

    def place(self, row: int, part: str) -> str:
        """How error messages name a text of the part "train", "validation" or "test"."""
        return self.places[row] if self.places else f"the {part} text {self.ids[row]}"


def refuse(problems: Sequence[str]) -> None:
    """Raises UserError with the first ten problems and the number of the others, unless there is none."""
    if problems:
        more = [f"and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
        raise UserError("\n".join([*problems[:SHOWN], *more]))


def read_table(
    path: Path,
    *,
    text_column: str,
    label_column: str | None,
    label_separator: str | None = None,
    label_columns: Sequence[str] = (),
) -> Texts:
    """Reads .tsv, .csv or .jsonl, also compressed (.gz, .xz), UTF-8.

    A .tsv has one row a line and no quoting; a .csv is quoted as spreadsheets do; both begin with the names of the
    columns. If another character separates these, it is used, and a note on standard error says so. A column (or
    field) `id` names the rows; without one they are numbered from 0. Labels of JSON lines may be numbers; equal ones,
    such as 1, 1.0 and true, are one class.

    Args:
        path: the file.
        text_column: name of the column of texts.
        label_column: name of the column of labels. None for texts without labels.
        label_separator: between several labels of a text; JSON lines may also give a list. None for one label a text.
        label_columns: columns of 0 and 1 in place of `label_column`, one for each label.

    Raises:
        UserError: the file cannot be read or is of another kind, it lacks a column, or rows are damaged or lack a
            text or a label; each is named as FILE:LINE, with lines from 1.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.csv")
        >>> _ = path.write_text("text;label\\nfine;yes\\n")
        >>> read_table(path, text_column="text", label_column="label").labels
        ['yes']
    """
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix not in (".gz", ".xz")), "")
    if kind not in (".tsv", ".csv", ".jsonl"):
        raise UserError(f"{path} must end in .tsv, .csv, .jsonl, optionally followed by .gz or .xz.")
    wanted = dict.fromkeys(label_columns, "--label-columns")
    if label_column is not None and not label_columns:
        wanted[label_column] = "--label-column"
    if text_column in wanted:
        raise UserError(f"{wanted[text_column]} must be another column than the texts'; got {text_column!r}.")
    wanted = {text_column: "--text-column"} | wanted
    # Spreadsheets put a byte order mark in front, which is no part of the first column's name.
    content = read_text(path).removeprefix("\ufeff")
    if not content.strip():
        raise UserError(f"{path} holds no texts.")
    rows = _json_rows(content, [*wanted, "id"]) if kind == ".jsonl" else _rows(content, path, kind, wanted)
    found, problems = Texts([], [], []), []
    columns: dict[str, Any] = {}
    for line, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            columns.update(row)
            text = _string(_cell(row, text_column), "text")
            if not text.strip() and len(wanted) > 1:  # without labels it is passed through
                problems.append(f"{path}:{line}: the text is empty.")
            if label_columns:
                chosen = [name for name in label_columns if _holds(row, name)]
                label = _label(chosen, label_separator)
            else:
                label = "" if label_column is None else _label(_cell(row, label_column), label_separator)
            name = row.get("id")
            found.ids.append(_string(str(len(found.ids) if name is None else name), "id"))
            found.texts.append(text)
            found.labels.append(label)
            found.places.append(f"{path}:{line}")
        except ValueError as problem:
            problems.append(f"{path}:{line}: {problem}.")
    for column, flag in wanted.items():
        if columns and column not in columns:
            raise _no_column(flag, column, path, columns)
    refuse(problems)
    if not found.texts:
        raise UserError(f"{path} holds no texts.")
    return found


def _no_column(flag: str, column: str, path: Path, columns: Iterable[str]) -> UserError:
    return UserError(f"{flag} must be a column of {path}: {', '.join(map(repr, columns))}; got {column!r}.")


def _rows(
    content: str, path: Path, kind: str, wanted: dict[str, str]
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Line and cells by column of each row of a .tsv or .csv; an error in place of the cells of a damaged one."""
    csv.field_size_limit(1 << 30)  # the default refuses texts of more than 131,072 characters
    usual = "\t" if kind == ".tsv" else ","
    headers: dict[str, list[str]] = {}
    for separator in sorted(SEPARATORS, key=lambda one: one != usual):
        header = next((row for _, row in _cells(content, separator, kind) if row), [])
        if isinstance(header, list):
            headers[separator] = header
            if set(wanted) <= set(header):
                break
    else:
        separator, header = usual, headers.get(usual, [])
    for column, flag in wanted.items():
        if column not in header:
            raise _no_column(flag, column, path, header)
    for column in (*wanted, "id"):
        if header.count(column) > 1:
            raise UserError(f"{path}:1: {header.count(column)} columns are named {column!r}.")
    if separator != usual:
        print(f"note: {path} is read as separated by {SEPARATORS[separator]}.", file=sys.stderr)
    rows = ((line, row) for line, row in _cells(content, separator, kind) if row)
    for line, row in itertools.islice(rows, 1, None):
        if isinstance(row, list) and len(row) != len(header):
            yield line, ValueError(f"{len(row)} columns; the first line has {len(header)}")
        else:
            yield line, row if isinstance(row, ValueError) else dict(zip(header, row, strict=True))


def _cells(content: str, separator: str, kind: str) -> Iterator[tuple[int, list[str] | ValueError]]:
    """First line and cells of each row; blank rows are empty."""
    quoting: Any = csv.QUOTE_NONE if kind == ".tsv" and separator == "\t" else csv.QUOTE_MINIMAL
    file = io.StringIO(content, newline="")
    reader = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
            yield line, row if any(map(str.strip, row)) else []
        except StopIteration:
            return
        except csv.Error as error:
            yield line, ValueError(f"the quotes do not match ({error})")


def _json_rows(content: str, columns: list[str]) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Line and fields of each JSON object; an error in place of those of a damaged one."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for column in columns:
            if names.count(column) > 1:
                raise ValueError(f"{names.count(column)} fields are named {column!r}")
        return dict(pairs)

    for number, line in enumerate(io.StringIO(content, newline=""), 1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=unique)
                yield (
                    number,
                    row if isinstance(row, dict) else ValueError(f"not a JSON object: {line.strip()[:40]!r}"),
                )
            except json.JSONDecodeError as error:
                yield number, ValueError(f"not JSON ({error.msg}, column {error.colno})")
            except RecursionError:
                yield number, ValueError("not JSON (nested too deeply)")
            except ValueError as error:
                yield number, error


def _cell(row: dict[str, Any], column: str) -> Any:
    value = row.get(column)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{column!r} is missing" + ("" if value is None else f" ({value})"))
    return value


def _holds(row: dict[str, Any], column: str) -> bool:
    """Whether a column of 0 and 1 has a 1."""
    value = _cell(row, column)
    found = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    try:
        return found[str(value).strip().lower()]
    except KeyError:
        raise ValueError(f"{column!r} must be 0 or 1; got {value!r}") from None


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the {what} must be a string; got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the {what} must be Unicode text; it holds a lone surrogate: {value[:40]!r}"
        ) from None
    return value


def _label(value: Any, separator: str | None) -> str:
    if isinstance(value, list):
        if separator is None:
            raise ValueError(f"several labels are for --loss multilabel; got {value!r}")
        labels = [_label(one, None) for one in value]
        if inside := [label for label in labels if separator in label]:
            raise ValueError(
                f"the label {inside[0]!r} holds the separator {separator!r}; see --label-separator"
            )
        return separator.join(labels)
    if isinstance(value, int | float):
        value = str(int(value)) if value == int(value) else str(value)
    # Composed, since é of one character and of two are one label to whoever wrote them.
    label = unicodedata.normalize("NFC", _string(value, "label").strip())
    if not label and separator is None:
        raise ValueError("the label is empty")
    return label


def split_labels(label: str, separator: str | None) -> list[str]:
    """The labels of a text from its column; without a separator there is one.

    Examples:
        >>> split_labels("a; b", ";"), split_labels("a; b", None)
        (['a', 'b'], ['a; b'])
    """
    return [label] if separator is None else [x for x in map(str.strip, label.split(separator)) if x]


def in_order(labels: Iterable[str]) -> list[str]:
    """The different labels, by value where all are numbers.

    Examples:
        >>> in_order(["10", "9", "10"]), in_order(["b", "10", "9"])
        (['9', '10'], ['10', '9', 'b'])
    """
    found = sorted(set(labels))
    numbers = all(re.fullmatch(r"-?\d+(\.\d+)?", label) for label in found)
    return sorted(found, key=float) if numbers else found


def split_by_hash(texts: Texts, count: int, *, separator: str | None = None) -> tuple[Texts, Texts]:
    """The others, and the `count` texts with the smallest SHA-256 of their names; both in their order.

    A text stays with the others if it is their last one with some label: fewer are then split off.

    Args:
        texts: to split.
        count: texts of the second part.
        separator: between several labels of a text; None for one.
    """
    # Texts of one name by their own hash, not in the order of the file, which may be sorted by label.
    names = [[_hash(x) for x in pair] for pair in zip(texts.ids, texts.texts, strict=True)]
    ranked = sorted(range(len(names)), key=names.__getitem__)
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


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def take(texts: Texts, places: Iterable[int]) -> Texts:
    """The texts at the given places, in their order."""
    chosen = list(places)
    columns = (texts.texts, texts.labels, texts.ids, texts.places)
    return Texts(*([column[i] for i in chosen] if column else [] for column in columns))
