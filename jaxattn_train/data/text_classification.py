"""Labelled texts: SST-2, IMDB, or the user's own files with a column of texts and one of labels."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxattn_train.data.download import RemoteFile, download
from jaxattn_train.data.files import check, decode, find, obtain, tar_members
from jaxattn_train.data.tables import Texts, read_table, split_by_hash, take
from jaxattn_train.errors import UserError

_SST2_HOME = "https://raw.githubusercontent.com/forest-snow/alps/main/data/SST-2"
_SST2_HELP = (
    "Without a network: put train.tsv, dev.tsv and test.tsv (columns sentence and label) of that repository's "
    "data/SST-2 into a folder sst2 of a data folder, and set JAXATTN_DATA to the data folder or give --data-path; "
    "or use --train-file with files of your own."
)
SST2 = {
    part: RemoteFile(
        f"sst2/{part}.tsv", f"{_SST2_HOME}/{part}.tsv", sha256, f"the {part} part of SST-2", _SST2_HELP
    )
    for part, sha256 in {
        "train": "920e317b2c52e12cd22db1da2c6708312bd7dc4f3712b9bbf1b50ee6c2c792ba",
        "dev": "92353770071a2a889f75d000a38a9e541ea8f0a5499e50f040b17917a5cbf66f",
        "test": "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
    }.items()
}
IMDB = RemoteFile(
    "aclImdb_v1.tar.gz",
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
    "the IMDB archive of Maas et al.",
    "Without a network: put aclImdb_v1.tar.gz, the folder aclImdb that it unpacks to, or imdb_train.jsonl.xz and "
    "imdb_test.jsonl.xz (lines with id, label 0 or 1, text) into a folder, and set JAXATTN_DATA to it or give "
    "--data-path.",
)
IMDB_SIZE, IMDB_VALIDATION = 25_000, 2_500


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
    """A data set in its three parts."""

    name: str
    train: Texts
    validation: Texts
    test: Texts | None
    class_names: dict[str, str] = dataclasses.field(default_factory=dict)
    """What labels mean, where that is known."""

    def parts(self) -> dict[str, Texts]:
        """The parts that exist, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def repeated(self) -> list[str]:
        """A note where texts of other parts are also training texts, so that their scores do not generalise."""
        seen = set(self.train.texts)
        counts = {
            name: sum(text in seen for text in part.texts)
            for name, part in self.parts().items()
            if name != "train"
        }
        found = [f"{count:,} {name}" for name, count in counts.items() if count]
        return [f"also among the training texts: {', '.join(found)} texts"] if found else []


def load_sst2(data_path: str | None = None) -> LabelledTexts:
    """SST-2 as three files of sentences (training: phrases too) with labels 0 and 1.

    Args:
        data_path: a folder with train.tsv, dev.tsv and test.tsv, or with a folder sst2 of them; None looks into
            JAXATTN_DATA and the cache, and downloads.

    Raises:
        UserError: a file is missing, not the expected one, or cannot be downloaded.
    """
    train, dev, test = (
        read_table(obtain(file, data_path), text_column="sentence", label_column="label")
        for file in SST2.values()
    )
    return LabelledTexts("SST-2", train, dev, test, {"0": "negative", "1": "positive"})


def load_imdb(data_path: str | None = None) -> LabelledTexts:
    """IMDB: 25,000 reviews to train on, of which 2,500 are held out for validation, and 25,000 to test on.

    The validation reviews are those with the smallest hashes of their names, whatever the order of the files.

    Args:
        data_path: a folder with the two jsonl.xz files, with aclImdb, or with the archive, or one of the last two
            itself; None looks into JAXATTN_DATA and the cache, and downloads.

    Raises:
        UserError: nothing is found and nothing can be downloaded, or what is found is not IMDB.
    """
    inside = str(Path("train", "pos"))
    path = find(["imdb_train.jsonl.xz", "aclImdb", IMDB.name], data_path, inside=inside) or download(IMDB)
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        check(IMDB, path)
        parts = _imdb_parts(tar_members(path))
    elif path.is_dir():
        files = [p for part in ("train", "test") for p in (path / part).glob("[np][eo][gs]/*.txt")]
        parts = _imdb_parts((p.relative_to(path).as_posix(), p.read_bytes()) for p in files)
    elif path.name == "imdb_train.jsonl.xz":
        parts = {
            part: read_table(
                path.with_name(f"imdb_{part}.jsonl.xz"), text_column="text", label_column="label"
            )
            for part in ("train", "test")
        }
    else:
        raise UserError(
            f"--data-path {path} is not IMDB: give {IMDB.name}, the folder aclImdb, or a folder with one of these "
            "or with imdb_train.jsonl.xz and imdb_test.jsonl.xz."
        )
    train, test = (_sorted(parts[part]) for part in ("train", "test"))
    if (len(train.texts), len(test.texts)) != (IMDB_SIZE, IMDB_SIZE):
        raise UserError(
            f"{path} is not all of IMDB: it has {len(train.texts)} reviews to train on and {len(test.texts)} "
            f"to test on; expected {IMDB_SIZE} and {IMDB_SIZE}."
        )
    rest, validation = split_by_hash(train, IMDB_VALIDATION)
    return LabelledTexts("IMDB", rest, validation, test, {"0": "negative", "1": "positive"})


def load_files(
    train: str,
    validation: str | None,
    test: str | None,
    *,
    text_column: str,
    label_column: str,
    label_columns: Sequence[str] = (),
    validation_share: float = 0.1,
    test_share: float | None = None,
    label_separator: str | None = None,
) -> LabelledTexts:
    """The user's own files; see `read_table`.

    Args:
        train: to train on.
        validation: to choose the best checkpoint by; None takes a share of `train`, chosen by hash, without the last
            text of any label.
        test: for the numbers at the end; None for `test_share`.
        text_column: name of the column of texts.
        label_column: name of the column of labels.
        label_columns: columns of 0 and 1 in place of `label_column`.
        validation_share: that share.
        test_share: share of `train` for the numbers at the end, where there is no file; None for no test.
        label_separator: between several labels of a text; None for one.

    Raises:
        UserError: a file or a column is missing, or a part would be empty.
    """
    read = functools.partial(
        read_table,
        text_column=text_column,
        label_column=label_column,
        label_separator=label_separator,
        label_columns=label_columns,
    )
    rest = read(Path(train))
    size = len(rest.texts)
    parts: dict[str, Any] = {}
    for name, file, share in (("test", test, test_share), ("validation", validation, validation_share)):
        if file is not None or share is None:
            parts[name] = None if file is None else read(Path(file))
            continue
        count = round(size * share)
        if not 0 < count < len(rest.texts):
            raise UserError(
                f"--{name}-share {share} of {size} texts leaves {count} for {name}; give --{name}-file or another "
                "share."
            )
        rest, parts[name] = split_by_hash(rest, count, separator=label_separator)
        if not parts[name].texts:
            raise UserError(
                f"every text is the only one with some label, so that none is left for {name}; give --{name}-file."
            )
    return LabelledTexts(Path(train).name, rest, parts["validation"], parts["test"])


def _imdb_parts(files: Iterable[tuple[str, bytes]]) -> dict[str, Texts]:
    parts = {part: Texts([], [], []) for part in ("train", "test")}
    for name, content in files:
        *_, part, label, file = ("", "", *name.split("/"))
        if part in parts and label in ("neg", "pos") and file.endswith(".txt"):
            parts[part].texts.append(decode(content, name))
            parts[part].labels.append("1" if label == "pos" else "0")
            parts[part].ids.append(file.removesuffix(".txt"))
    return parts


def _sorted(texts: Texts) -> Texts:
    """In an order that does not depend on that of the files in a folder."""
    return take(texts, sorted(range(len(texts.ids)), key=lambda i: (texts.labels[i], texts.ids[i])))
