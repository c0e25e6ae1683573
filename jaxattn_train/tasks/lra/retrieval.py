"""Retrieval of the Long Range Arena: does one paper of the ACL Anthology Network cite the other? Bytes, 4,000 each.

The released files have no header; a line is a label (0 or 1, also written 0.0 or 1.0), two names and two texts,
separated by tabs, without quoting. No checksums are published, so the structure of every line and the number of
lines are checked. An example is two sequences; ids are as published, a byte's value + 1, and 0 for padding.
"""

from collections.abc import Iterator
from pathlib import Path

from jaxattn_train.data.files import find, readable
from jaxattn_train.data.sequences import Splits
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.lra.text import MAX_LENGTH, byte_splits

PAIRS = (147_086, 18_090, 17_437)
RELEASE_URL = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
# As unpacked, and as commonly sorted, below a data folder.
FOLDERS = ("aan/", "lra_release/lra_release/tsv_data/", "lra_release/tsv_data/", "tsv_data/", "")
_LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}


def load_retrieval(data_path: str | None = None, *, max_length: int = MAX_LENGTH) -> Splits:
    """Reads new_aan_pairs.train.tsv and, beside it, .eval.tsv and .test.tsv.

    Args:
        data_path: value of --data-path: a folder that holds them, or the first one.
        max_length: bytes of each text; longer ones are truncated.

    Returns:
        The three parts; the facts of `byte_splits`.

    Raises:
        UserError: a file is missing or a line is malformed.
    """
    first = find([f"{folder}new_aan_pairs.train.tsv" for folder in FOLDERS], data_path)
    if first is None:
        raise UserError(
            "retrieval needs new_aan_pairs.train.tsv of the Long Range Arena's release, and none was found. Unpack "
            f"{RELEASE_URL} (7.7 GB, which is not downloaded automatically) and set JAXATTN_DATA to the folder that "
            "holds lra_release, or give --data-path with the folder that holds the file."
        )
    if first.is_dir() or ".train." not in first.name:
        raise UserError(f"--data-path {first} must be new_aan_pairs.train.tsv or a folder that holds it.")
    files = [
        first.with_name(first.name.replace(".train.", f".{part}.")) for part in ("train", "eval", "test")
    ]
    names = ("train", "validation", "test")
    splits = byte_splits(str(first.parent), dict(zip(names, map(_read, files), strict=True)), max_length)
    for file, part, pairs in zip(files, splits[:3], PAIRS, strict=True):
        if len(part) != pairs:
            raise UserError(f"{file} is incomplete: it holds {len(part)} pairs; expected {pairs}.")
    return splits


def _read(path: Path) -> Iterator[tuple[int, bytes, bytes]]:
    with readable(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) != 5 or fields[0] not in _LABELS:
                raise UserError(
                    f"{path}:{number}: expected a label 0 or 1, two names and two texts between tabs; got "
                    f"{len(fields)} fields, the first {fields[0][:20]!r}."
                )
            yield _LABELS[fields[0]], fields[3], fields[4]
