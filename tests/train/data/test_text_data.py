import dataclasses
import hashlib
import io
import json
import lzma
import os
import pathlib
import tarfile

import numpy as np
import pytest

from jaxattn_train.data import text_classification
from jaxattn_train.data.tables import Texts, split_by_hash
from jaxattn_train.data.text_classification import LabelledTexts, load_files, load_imdb, load_sst2
from jaxattn_train.data.text_examples import text_examples
from jaxattn_train.data.words import UNKNOWN
from jaxattn_train.errors import UserError

REAL = os.environ.get("JAXATTN_DATA")
COLUMNS = {"text_column": "text", "label_column": "label"}


def test_the_validation_part_does_not_depend_on_the_order():
    texts = Texts([f"text {i}" for i in range(50)], ["0", "1"] * 25, [f"id{i}" for i in range(50)])
    turned = Texts(texts.texts[::-1], texts.labels[::-1], texts.ids[::-1])
    rest, kept = split_by_hash(texts, 10)
    assert len(kept.texts) == 10
    assert sorted(rest.ids + kept.ids) == sorted(texts.ids)
    assert set(split_by_hash(turned, 10)[1].ids) == set(kept.ids)
    assert all(
        text.removeprefix("text ") == name.removeprefix("id")
        for text, name in zip(kept.texts, kept.ids, strict=True)
    )


def test_a_share_is_kept_where_there_is_no_validation_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)))
    found = load_files(str(path), None, None, **COLUMNS, validation_share=0.25)
    assert (len(found.train.texts), len(found.validation.texts), found.test) == (30, 10, None)
    with pytest.raises(UserError, match=r"--validation-share 0\.01 of 40 texts leaves 0"):
        load_files(str(path), None, None, **COLUMNS, validation_share=0.01)


def test_every_label_keeps_a_training_text(tmp_path):
    path = tmp_path / "a.csv"
    rows = "".join(f"w{i} great,{'rare' if i == 9 else 'ab'[i % 2]}\n" for i in range(20))
    path.write_text("text,label\n" + rows)
    for share in (0.1, 0.5, 0.9):
        found = load_files(str(path), None, None, **COLUMNS, validation_share=share)
        assert set(found.train.labels) == {"a", "b", "rare"}
        assert len(found.validation.texts) == min(round(20 * share), 17)
        data = text_examples(found, max_length=8, vocabulary_size=50)
        assert data.classes == ("a", "b", "rare")
    # Of several labels each must stay, not each combination of them.
    rows = "".join(f"w{i},{'x;rare' if i == 3 else ('x', 'y', 'x;y')[i % 3]}\n" for i in range(12))
    path.write_text("text,label\n" + rows)
    found = load_files(str(path), None, None, **COLUMNS, validation_share=0.5, label_separator=";")
    assert len(found.validation.texts) == 6
    assert "x;rare" in found.train.labels
    path.write_text("text,label\n" + "".join(f"w{i},{i}\n" for i in range(20)))
    with pytest.raises(UserError, match="the only one with some label"):
        load_files(str(path), None, None, **COLUMNS)


def test_texts_on_both_sides_are_noted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"same,{i % 2}\n" for i in range(20)))
    data = text_examples(load_files(str(path), None, None, **COLUMNS), max_length=8, vocabulary_size=50)
    assert data.notes[-1] == "also among the training texts: 2 validation texts"
    path.write_text("text,label\n" + "".join(f"w{i},{i % 2}\n" for i in range(20)))
    data = text_examples(load_files(str(path), None, None, **COLUMNS), max_length=8, vocabulary_size=50)
    assert not any("also among" in note for note in data.notes)


@pytest.fixture
def small_imdb(monkeypatch, tmp_path):
    """An archive like that of IMDB with six reviews a part; and its members."""
    members = {
        f"aclImdb/{part}/{label}/{i}_{4 if label == 'neg' else 9}.txt": f"{part} {label} {i}<br /><br />fin"
        for part in ("train", "test")
        for label in ("neg", "pos", "unsup")
        for i in (10, 2, 1)
    }
    path = tmp_path / "archive" / "aclImdb_v1.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(
        text_classification, "IMDB", dataclasses.replace(text_classification.IMDB, sha256=digest)
    )
    monkeypatch.setattr(text_classification, "IMDB_SIZE", 6)
    monkeypatch.setattr(text_classification, "IMDB_VALIDATION", 2)
    return path, members


def test_imdb_is_the_same_from_archive_folder_and_lines(small_imdb, tmp_path):
    path, members = small_imdb
    found = [load_imdb(str(path)), load_imdb(str(path.parent))]
    for name, text in members.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found += [load_imdb(str(tmp_path)), load_imdb(str(tmp_path / "aclImdb"))]
    for part in ("train", "test"):
        rows = [
            {"id": pathlib.Path(name).stem, "label": int("/pos/" in name), "text": text}
            for name, text in members.items()
            if f"/{part}/" in name and "unsup" not in name
        ]
        lines = tmp_path / "lines"
        lines.mkdir(exist_ok=True)
        content = "\n".join(map(json.dumps, rows)).encode()
        (lines / f"imdb_{part}.jsonl.xz").write_bytes(lzma.compress(content))
    found.append(load_imdb(str(tmp_path / "lines")))
    assert all(each == found[0] for each in found)
    assert (len(found[0].train.texts), len(found[0].validation.texts), len(found[0].test.texts)) == (4, 2, 6)
    assert found[0].test.labels == ["0"] * 3 + ["1"] * 3


def test_reviews_that_are_not_utf8_are_named(small_imdb, tmp_path):
    folder = tmp_path / "aclImdb" / "train" / "pos"
    folder.mkdir(parents=True)
    (folder / "1_9.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"train/pos/1_9\.txt:1: not UTF-8 text \(byte 3\)"):
        load_imdb(str(tmp_path))


def test_half_of_imdb_is_refused(small_imdb, monkeypatch):
    monkeypatch.setattr(text_classification, "IMDB_SIZE", 8)
    with pytest.raises(UserError, match="has 6 reviews to train on and 6 to test on; expected 8 and 8"):
        load_imdb(str(small_imdb[0]))


def test_another_file_is_not_taken_for_sst2(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nx\t1\n")
    with pytest.raises(UserError, match=r"train\.tsv is not the train part of SST-2: SHA-256"):
        load_sst2(str(tmp_path))
    with pytest.raises(
        UserError, match=r"--data-path .*nowhere does not exist; it should hold one of: sst2/train"
    ):
        load_sst2(str(tmp_path / "nowhere"))
    with pytest.raises(
        UserError, match=r"holds none of: imdb_train\.jsonl\.xz, aclImdb, aclImdb_v1\.tar\.gz"
    ):
        load_imdb(str(tmp_path))


@pytest.mark.skipif(not REAL, reason="JAXATTN_DATA is not set")
def test_the_real_data_sets():
    sst2 = load_sst2()
    assert [len(part.texts) for part in (sst2.train, sst2.validation, sst2.test)] == [60_614, 6_735, 872]
    imdb = load_imdb()
    assert [len(part.texts) for part in (imdb.train, imdb.validation, imdb.test)] == [22_500, 2_500, 25_000]
    assert imdb.validation.ids[:3] == ["10022_4", "10024_3", "10028_2"]
    data = text_examples(sst2, max_length=32, vocabulary_size=1000)
    assert data.train.lengths.max() == 32
    assert "cut at 32 words" in " ".join(data.notes)


def _labelled(train, validation=None, **kwargs):
    def part(rows):
        return Texts([t for t, _ in rows], [label for _, label in rows], [f"r{i}" for i in range(len(rows))])

    return LabelledTexts("toy", part(train), part(validation or train), None, **kwargs)


def test_texts_become_ids_and_nothing_is_cut_silently():
    texts = _labelled(
        [("good good film", "b"), ("bad", "a"), ("...\n", "a"), ("  ", "b")], class_names={"a": "A"}
    )
    data = text_examples(texts, max_length=2, vocabulary_size=4)
    assert data.classes == ("A", "b")
    assert data.vocab_size == 4
    assert data.train.padded(np.arange(4), 2).tokens.tolist() == [[2, 2], [UNKNOWN, 0], [3, 0], [UNKNOWN, 0]]
    assert data.train.labels.tolist() == [1, 0, 0, 1]
    notes = "\n".join(data.notes)
    assert "cut at 2 words (--max-length): 1 train, 1 validation" in notes
    assert "without a word, read as one unknown word: 1 train, 1 validation" in notes
    assert data.lengths is None
    with pytest.raises(ValueError, match="length must be at least the longest sequence, 2"):
        data.train.padded(np.arange(4), 1)


def test_every_change_of_the_data_changes_its_hash():
    texts = _labelled([("good film", "1"), ("bad film", "0")])
    same, other, cut, trees = (
        text_examples(
            texts if i != 1 else _labelled([("good film", "0"), ("bad film", "1")]), **options
        ).digests()
        for i, options in enumerate(
            [
                {"max_length": 4, "vocabulary_size": 9},
                {"max_length": 4, "vocabulary_size": 9},
                {"max_length": 1, "vocabulary_size": 9},
                {"max_length": 4, "vocabulary_size": 9, "max_branching": 2},
            ]
        )
    )
    assert len(set(map(repr, (same, other, cut, trees)))) == 4
    assert same == text_examples(texts, max_length=4, vocabulary_size=9).digests()


def test_unknown_and_single_labels_are_named():
    with pytest.raises(UserError, match="validation text r0 has the label '2', which no training text has"):
        text_examples(_labelled([("a", "0"), ("b", "1")], [("c", "2")]), max_length=4, vocabulary_size=9)
    with pytest.raises(UserError, match="must have at least 2 labels; all are '0'"):
        text_examples(_labelled([("a", "0")]), max_length=4, vocabulary_size=9)
