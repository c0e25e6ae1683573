"""Retrieval of the Long Range Arena: does one paper of the ACL Anthology Network cite the other? Bytes, 4,000 each.

The released files have no header; a line is a label (0 or 1, also written 0.0 or 1.0), two names and two texts,
separated by tabs, without quoting. No checksums are published: what is checked is the structure of every line
and the number of lines. Two texts make an example of two towers; ids are as published, a byte's value + 1, and
0 for padding.
"""

from collections.abc import Iterator
from pathlib import Path

from train.errors import UserError
from train.tasks.lra.files import RETRIEVAL, find_released
from train.tasks.lra.split import Split, SplitBuilder, Splits
from train.tasks.lra.text import PARTS

MAX_LENGTH = 4000
VOCABULARY_SIZE = 257
PAIRS = (147_086, 18_090, 17_437)
_LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}


def load_retrieval(data_path: str | None = None, *, max_length: int = MAX_LENGTH) -> Splits:
    """Reads new_aan_pairs.train.tsv and, beside it, .eval.tsv and .test.tsv.

    Args:
        data_path: what --data-path says: a folder that holds them, or the first one.
        max_length: the task's, of each text; what is longer loses its end.

    Returns:
        The three parts; the facts say of each how many texts were cut and how many bytes that was.

    Raises:
        UserError: a file is missing or a line is not as it should be.
    """
    first = find_released(RETRIEVAL, data_path, "retrieval")
    if first.is_dir() or ".train." not in first.name:
        raise UserError(f"--data-path {first} must be new_aan_pairs.train.tsv or a folder that holds it.")
    names = [first.name.replace(".train.", f".{part}.") for part in ("train", "eval", "test")]
    train, validation, test = parts = [_read(first.with_name(name), max_length) for name in names]
    for name, part, pairs in zip(names, parts, PAIRS, strict=True):
        if len(part) != pairs:
            raise UserError(
                f"{first.with_name(name)} is not whole: it holds {len(part)} pairs; expected {pairs}."
            )
    facts = {
        "source": str(first.parent),
        "sha256": {name: part.sha256() for name, part in zip(PARTS, parts, strict=True)},
        "cut_texts_and_bytes": {name: list(part.cut) for name, part in zip(PARTS, parts, strict=True)},
    }
    return Splits(train, validation, test, facts)


def _read(path: Path, max_length: int) -> Split:
    builder = SplitBuilder(max_length=max_length, towers=2)
    for number, line in enumerate(_lines(path), 1):
        fields = line.rstrip(b"\r\n").split(b"\t")
        if len(fields) != 5 or fields[0] not in _LABELS:
            raise UserError(
                f"{path}, line {number}: expected a label 0 or 1, two names and two texts between tabs; got "
                f"{len(fields)} fields, the first {fields[0][:20]!r}."
            )
        builder.add(_LABELS[fields[0]], fields[3], fields[4])
    return builder.build()


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
