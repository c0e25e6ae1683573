import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from jaxattn_train.data.tables import Texts
from jaxattn_train.data.text_classification import LabelledTexts
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.lra import image, retrieval, text
from jaxattn_train.tasks.lra.image import load_image, to_grey
from jaxattn_train.tasks.lra.options import LRADataOptions
from jaxattn_train.tasks.lra.published import TASKS
from jaxattn_train.tasks.lra.registry import LRA_TASKS
from jaxattn_train.tasks.lra.retrieval import load_retrieval
from jaxattn_train.tasks.lra.text import load_text

REAL = os.environ.get("JAXATTN_DATA", "")


@pytest.fixture(autouse=True)
def alone(offline):
    """No data folder, an empty cache, no network."""


def text_of(tokens, length):
    return bytes((tokens[:length] - 1).tolist())


# Image


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Six batches of 20 pictures in the original layout, whose checksums are the expected ones."""
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    records = random.integers(0, 256, (6, 20, 3073), np.uint8)
    records[..., 0] = random.integers(0, 10, (6, 20))
    for name, batch in zip(image.BATCHES, records, strict=True):
        (folder / name).write_bytes(batch.tobytes())
        monkeypatch.setitem(image.BATCHES, name, hashlib.sha256(batch.tobytes()).hexdigest())
    monkeypatch.setattr(image, "PICTURES", 20)
    return folder, records.reshape(120, 3073)


def test_pictures_are_grey_and_in_order(cifar, monkeypatch):
    folder, records = cifar
    expected = []
    for record in records.astype(float):
        red, green, blue = record[1:].reshape(3, 1024) / 255
        expected.append(np.floor((0.2989 * red + 0.5870 * green + 0.1140 * blue) * 255.5 + 1e-9))
    for path in (folder, folder.parent):
        splits = load_image(str(path))
        assert [len(part) for part in splits[:3]] == [90, 10, 20]
    monkeypatch.setenv("JAXATTN_DATA", str(folder.parent))
    splits = load_image()
    pictures = np.concatenate([part.padded(np.arange(len(part)), 1024).tokens for part in splits[:3]])
    np.testing.assert_array_equal(pictures, expected)
    labels = np.concatenate([part.labels for part in splits[:3]])
    np.testing.assert_array_equal(labels, records[:, 0])


def test_the_archive_is_read_too(cifar, monkeypatch):
    folder, _ = cifar
    archive = folder.parent / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        out.add(folder, "cifar-10-batches-bin")
    with pytest.raises(UserError, match="is not the binary version of CIFAR-10"):
        load_image(str(archive))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(image, "CIFAR10", dataclasses.replace(image.CIFAR10, sha256=digest))
    assert load_image(str(archive)).train.sha256() == load_image(str(folder)).train.sha256()


def test_grey_of_every_level():
    level = np.arange(256, dtype=np.uint8)
    grey = to_grey(np.stack([level] * 3)[None])[0]
    assert grey[0] == 0 and grey[255] == 255
    assert np.abs(grey.astype(int) - level).max() <= 1 and (np.diff(grey.astype(int)) >= 0).all()


def test_missing_and_damaged_pictures(cifar, tmp_path):
    with pytest.raises(
        UserError, match=r"could not download cifar-10.*no network.*JAXATTN_DATA.*--data-path"
    ):
        load_image()
    folder, _ = cifar
    content = (folder / "data_batch_3.bin").read_bytes()
    (folder / "data_batch_3.bin").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"data_batch_3.bin in .* is not that of CIFAR-10: 61,459 bytes"):
        load_image(str(folder))
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read .*data_batch_3.bin: No such file"):
        load_image(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--data-path .* holds none of: cifar-10-batches-bin"):
        load_image(str(tmp_path / "empty"))


# Retrieval


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Three files in the released layout: every paper in two pairs, one longer than the task's length."""
    folder = tmp_path / "data" / "lra_release" / "lra_release" / "tsv_data"
    folder.mkdir(parents=True)
    papers = [f'paper {n} "quoted" é '.encode() * (n + 1) for n in range(10)] + [b"x" * 4500]
    lines = {}
    for part, count in (("train", 11), ("eval", 3), ("test", 4)):
        lines[part] = [(n % 2, papers[n], papers[(n + 1) % 11]) for n in range(count)]
        rows = [
            b"%d.0\ta%d\tb%d\t%s\t%s\n" % (label, n, n, a, b) for n, (label, a, b) in enumerate(lines[part])
        ]
        (folder / f"new_aan_pairs.{part}.tsv").write_bytes(b"".join(rows))
    monkeypatch.setattr(retrieval, "PAIRS", (11, 3, 4))
    return folder, lines


def test_pairs_round_trip(pairs, monkeypatch):
    folder, lines = pairs
    monkeypatch.setenv("JAXATTN_DATA", str(folder.parents[2]))
    splits = load_retrieval()
    for part, expected in zip(splits[:3], lines.values(), strict=True):
        batch = part.padded(np.arange(len(part)), 4000)
        assert batch.tokens.shape == (len(expected), 2, 4000)
        for row, (label, *texts) in enumerate(expected):
            assert batch.labels[row] == label
            for tower, paper in enumerate(texts):
                assert text_of(batch.tokens[row, tower], batch.lengths[row, tower]) == paper[:4000]
                assert not batch.tokens[row, tower, batch.lengths[row, tower] :].any()
    assert splits.facts["cut_texts_and_bytes"]["train"] == [2, 1000]
    assert splits.facts["cut_texts_and_bytes"]["validation"] == [0, 0]
    assert len(splits.train.codes) < 7000  # every paper is kept once


def test_missing_and_damaged_pairs(pairs):
    folder, _ = pairs
    with pytest.raises(
        UserError, match=r"retrieval needs new_aan_pairs.train.tsv .*JAXATTN_DATA.*--data-path"
    ):
        load_retrieval()
    file = folder / "new_aan_pairs.eval.tsv"
    content = file.read_bytes()
    file.write_bytes(content.rstrip().rsplit(b"\t", 1)[0])  # the last line has four fields
    with pytest.raises(UserError, match=r"eval.tsv:3: expected a label .* got 4 fields"):
        load_retrieval(str(folder))
    file.write_bytes(content.replace(b"1.0\t", b"yes\t"))
    with pytest.raises(UserError, match=r":2: .* the first b'yes'"):
        load_retrieval(str(folder))
    file.write_bytes(b"".join(content.splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match=r"eval.tsv is incomplete: it holds 2 pairs; expected 3"):
        load_retrieval(str(folder))
    file.unlink()
    with pytest.raises(UserError, match=r"cannot read .*eval.tsv"):
        load_retrieval(str(folder))


# Text


@pytest.fixture
def reviews(monkeypatch):
    """IMDB with the given texts over and over, sorted by label as the files are."""

    def give(*texts, sizes=(900, 100, 50)):
        parts = [
            Texts([texts[n % len(texts)] for n in range(size)], ["0"] * (size // 2) + ["1"] * (size // 2), [])
            for size in sizes
        ]
        monkeypatch.setattr(text, "load_imdb", lambda data_path: LabelledTexts("IMDB", *parts))

    return give


def test_reviews_round_trip(reviews):
    reviews("short", "é" * 3000, "a<br />b")  # 6,000 bytes
    splits = load_text()
    assert [len(part) for part in splits[:3]] == [900, 100, 50]
    batch = splits.train.padded(np.arange(6), 4000)
    found = [text_of(*row) for row in zip(batch.tokens, batch.lengths, strict=True)]
    assert found == [b"short", "é".encode() * 2000, b"a<br />b"] * 2
    assert splits.facts["cut_texts_and_bytes"] == {
        "train": [300, 600_000],
        "validation": [33, 66_000],
        "test": [17, 34_000],
    }


def test_missing_reviews():
    with pytest.raises(UserError, match=r"could not download aclImdb.*no network.*JAXATTN_DATA.*--data-path"):
        load_text()


@pytest.mark.skipif(
    not os.path.exists(os.path.join(REAL, "imdb_train.jsonl.xz")), reason="JAXATTN_DATA holds no IMDB"
)
def test_the_real_reviews():
    splits = load_text(REAL)
    assert [len(part) for part in splits[:3]] == [22_500, 2_500, 25_000]
    assert splits.test.lengths.max() == 4000
    cut = splits.facts["cut_texts_and_bytes"]["test"][0]
    assert 0 < cut < 1500 and (splits.test.lengths == 4000).sum() >= cut
    assert all(part.labels.mean() == pytest.approx(0.5, abs=0.02) for part in splits[:3])


# All tasks


def test_the_data_need_no_jax():
    code = "import sys, jaxattn_train.tasks.lra.data, jaxattn_train.data.buckets; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).resolve().parents[3])


def test_the_table_of_tasks():
    assert tuple(LRA_TASKS) == TASKS
    assert [name for name, task in LRA_TASKS.items() if task.two_tower] == ["retrieval"]
    assert LRA_TASKS["listops"].published["softmax"].mean == 38.49
    assert LRA_TASKS["pathfinder"].published["features:posrf-sorf"] == (52.37, 5.24)
    assert all(len(task.published) == 19 for task in LRA_TASKS.values())
    assert LRA_TASKS["image"].training.batch_size == 256
    softmax = [task.published["softmax"].mean for task in LRA_TASKS.values()]
    assert np.mean(softmax) == pytest.approx(56.82, abs=0.005)  # as printed there
    best = [task.published["features:oprf-fastfood_learnable"].mean for task in LRA_TASKS.values()]
    assert np.mean(best) == pytest.approx(57.17, abs=0.005)


def test_published_names_are_mechanisms_of_this_library():
    from jaxattn.core.registry import parse_mechanism

    for mechanism in LRA_TASKS["text"].published:
        parse_mechanism(mechanism if mechanism == "softmax" else f"{mechanism}:128")


@pytest.mark.parametrize("name", LRA_TASKS)
def test_every_task_loads_within_its_description(name, tmp_path, cifar, pairs, reviews):
    task = LRA_TASKS[name]
    reviews("good", "bad film")
    path = {"retrieval": pairs[0], "image": cifar[0]}.get(name)
    sizes = (10, 3, 4)
    made = {"workers": 1, "data_cache": str(tmp_path)} if name in ("listops", "pathfinder") else {}
    config = LRADataOptions(data_path=path and str(path), sizes=sizes, **made)
    splits = task.load(config)
    assert [len(part) for part in splits[:3]] == list(sizes)
    json.dumps(splits.facts)
    for part in splits[:3]:
        assert part.towers == 1 + task.two_tower
        batch = part.padded(np.arange(len(part)), task.max_length)
        assert (
            batch.tokens.dtype == np.int32 and 0 <= batch.tokens.min() <= batch.tokens.max() < task.vocab_size
        )
        assert batch.labels.min() >= 0 and batch.labels.max() < len(task.classes)
        assert batch.lengths.max() <= task.max_length
        if name == "text":
            assert set(part.labels) == {0, 1}  # IMDB is sorted by label: the first ones would not do
    assert splits.train.sha256() == task.load(config).train.sha256()
    with pytest.raises(UserError, match="size"):
        task.load(dataclasses.replace(config, sizes=(0, 3, 4)))


def test_listops_without_closing_brackets(tmp_path):
    config = LRADataOptions(sizes=(10, 3, 4), workers=1, data_cache=str(tmp_path))
    whole = LRA_TASKS["listops"].load(config)
    bare = LRA_TASKS["listops"].load(dataclasses.replace(config, closing_brackets=False))
    for a, b in zip(whole[:3], bare[:3], strict=True):
        rows = np.arange(len(a))
        with_brackets, without = a.padded(rows, 2000), b.padded(rows, 2000)
        for row in rows:
            tokens = with_brackets.tokens[row]
            expected = tokens[(tokens != 15) & (tokens != 0)]
            np.testing.assert_array_equal(without.tokens[row, : without.lengths[row]], expected)
    with pytest.raises(UserError, match="--no-closing-brackets is for listops; got it with --task image"):
        LRA_TASKS["image"].load(LRADataOptions(closing_brackets=False))


def test_what_a_task_cannot_use_is_refused(tmp_path):
    with pytest.raises(UserError, match="--data-path is for the tasks that are read from files"):
        LRA_TASKS["listops"].load(LRADataOptions(data_path=str(tmp_path)))
    with pytest.raises(UserError, match=r"--data-path .* holds none of: pathfinder32"):
        LRA_TASKS["pathfinder"].load(LRADataOptions(data_path=str(tmp_path)))
