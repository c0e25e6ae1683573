import dataclasses
import hashlib
import json
import lzma
import os
import pathlib
import subprocess
import sys
import tarfile
import urllib.error

import numpy as np
import pytest

from train.errors import UserError
from train.tasks.lra import image as lra_image
from train.tasks.lra import registry as lra
from train.tasks.lra import retrieval as lra_retrieval
from train.tasks.lra.batches import LRABatches
from train.tasks.lra.image import load_image, to_grey
from train.tasks.lra.published import TASKS
from train.tasks.lra.registry import LRA_TASKS, LRAConfig
from train.tasks.lra.retrieval import load_retrieval
from train.tasks.lra.split import Split, SplitBuilder
from train.tasks.lra.text import load_text


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch, tmp_path):
    """No data folder, an empty cache, no network."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache"))
    given = os.environ.get("JAXATTN_DATA")
    monkeypatch.delenv("JAXATTN_DATA", raising=False)
    return given


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
    for name, batch in zip(lra_image.BATCHES, records, strict=True):
        (folder / name).write_bytes(batch.tobytes())
        monkeypatch.setitem(lra_image.BATCHES, name, hashlib.sha256(batch.tobytes()).hexdigest())
    monkeypatch.setattr(lra_image, "PICTURES", 20)
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
    monkeypatch.setattr(lra_image, "CIFAR10", dataclasses.replace(lra_image.CIFAR10, sha256=digest))
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
    monkeypatch.setattr(lra_retrieval, "PAIRS", (11, 3, 4))
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
            for tower, text in enumerate(texts):
                assert text_of(batch.tokens[row, tower], batch.lengths[row, tower]) == text[:4000]
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
    with pytest.raises(UserError, match=r"eval.tsv, line 3: expected a label .* got 4 fields"):
        load_retrieval(str(folder))
    file.write_bytes(content.replace(b"1.0\t", b"yes\t"))
    with pytest.raises(UserError, match=r"line 2: .* the first b'yes'"):
        load_retrieval(str(folder))
    file.write_bytes(b"".join(content.splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match=r"eval.tsv is not whole: it holds 2 pairs; expected 3"):
        load_retrieval(str(folder))
    file.unlink()
    with pytest.raises(UserError, match=r"cannot read .*eval.tsv"):
        load_retrieval(str(folder))


# Text


def _reviews(folder, texts):
    for part in ("train", "test"):
        with lzma.open(folder / f"imdb_{part}.jsonl.xz", "wt", encoding="utf-8", preset=0) as file:
            for n in range(25_000):
                text = texts[n % len(texts)] if part == "train" else f"review {n}"
                file.write(json.dumps({"id": f"{n}_7", "label": n % 2, "text": text}) + "\n")


def test_reviews_round_trip(tmp_path):
    texts = ["short", "é" * 3000, "a<br />b"]  # 6,000 bytes are cut in the middle of nothing but a character
    _reviews(tmp_path, texts)
    splits = load_text(str(tmp_path))
    assert [len(part) for part in splits[:3]] == [22_500, 2_500, 25_000]
    seen = {}
    for part in splits[:2]:
        batch = part.padded(np.arange(0, len(part), 7), 4000)
        for tokens, length in zip(batch.tokens, batch.lengths, strict=True):
            text = text_of(tokens, length)
            seen[text] = seen.get(text, 0) + 1
    assert set(seen) == {text.encode()[:4000] for text in texts}
    cut = splits.facts["cut_texts_and_bytes"]
    assert cut["train"][0] + cut["validation"][0] == 8333 and cut["test"] == [0, 0]
    assert cut["train"][1] == 2000 * cut["train"][0]


def test_missing_reviews(tmp_path):
    with pytest.raises(UserError, match=r"could not download aclImdb.*no network.*JAXATTN_DATA.*--data-path"):
        load_text()
    _reviews(tmp_path, ["x"])
    file = tmp_path / "imdb_train.jsonl.xz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"imdb_train.jsonl.xz"):
        load_text(str(tmp_path))


def test_the_real_reviews(nothing_else):
    folder = nothing_else
    if not folder or not os.path.exists(os.path.join(folder, "imdb_train.jsonl.xz")):
        pytest.skip("JAXATTN_DATA holds no imdb_train.jsonl.xz")
    splits = load_text(folder)
    lengths = splits.test.lengths
    assert lengths.max() == 4000
    assert 0 < splits.test.cut[0] < 1500 and (lengths == 4000).sum() >= splits.test.cut[0]
    assert all(part.labels.mean() == pytest.approx(0.5, abs=0.02) for part in splits[:3])


# All tasks


def test_the_data_need_no_jax():
    code = "import sys, train.data.lra, train.data.lra_batches; assert 'jax' not in sys.modules"
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
    from jaxattn.nn.spelling import parse_mechanism

    for mechanism in LRA_TASKS["text"].published:
        parse_mechanism(mechanism if mechanism == "softmax" else f"{mechanism}:128")


@pytest.mark.parametrize("name", LRA_TASKS)
def test_every_task_loads_within_its_description(name, tmp_path, cifar, pairs, request):
    task = LRA_TASKS[name]
    if name == "text":
        _reviews(tmp_path, ["good", "bad film"])
    path = {"text": tmp_path, "retrieval": pairs[0], "image": cifar[0]}.get(name)
    sizes = (10, 3, 4)
    config = LRAConfig(data_path=path and str(path), sizes=sizes, workers=1, cache=str(tmp_path / "made"))
    splits = task.load(config)
    assert [len(part) for part in splits[:3]] == list(sizes)
    json.dumps(splits.facts)
    for part in splits[:3]:
        assert part.towers == 1 + task.two_tower
        batch = part.padded(np.arange(len(part)), task.max_length)
        assert (
            batch.tokens.dtype == np.int32 and 0 <= batch.tokens.min() <= batch.tokens.max() < task.vocab_size
        )
        assert batch.labels.min() >= 0 and batch.labels.max() < task.num_classes
        assert batch.lengths.max() <= task.max_length
        if name == "text":
            assert set(part.labels) == {0, 1}  # IMDB is sorted by label: the first ones would not do
    assert splits.train.sha256() == task.load(config).train.sha256()
    with pytest.raises(UserError, match="size"):
        task.load(dataclasses.replace(config, sizes=(0, 3, 4)))


def test_listops_without_closing_brackets(tmp_path):
    config = LRAConfig(sizes=(10, 3, 4), workers=1, cache=str(tmp_path))
    whole = LRA_TASKS["listops"].load(config)
    bare = LRA_TASKS["listops"].load(dataclasses.replace(config, closing_brackets=False))
    for a, b in zip(whole[:3], bare[:3], strict=True):
        rows = np.arange(len(a))
        with_brackets, without = a.padded(rows, 2000), b.padded(rows, 2000)
        for row in rows:
            tokens = with_brackets.tokens[row]
            expected = tokens[(tokens != 15) & (tokens != 0)]
            np.testing.assert_array_equal(without.tokens[row, : without.lengths[row]], expected)
    with pytest.raises(UserError, match="closing brackets"):
        LRA_TASKS["image"].load(LRAConfig(closing_brackets=False))


def test_what_a_task_cannot_use_is_refused(tmp_path):
    with pytest.raises(UserError, match="--data-path is not for listops"):
        LRA_TASKS["listops"].load(LRAConfig(data_path=str(tmp_path)))
    with pytest.raises(UserError, match=r"--data-path .* holds none of: pathfinder32"):
        LRA_TASKS["pathfinder"].load(LRAConfig(data_path=str(tmp_path)))


def test_the_released_pathfinder_by_data_path(tmp_path, monkeypatch):
    folder = tmp_path / "pathfinder" / "pathfinder32" / "curv_contour_length_14"
    (folder / "metadata").mkdir(parents=True)
    asked = []
    split = Split.end_to_end(np.zeros(10, np.uint8), np.ones(10, int), np.zeros(10))
    monkeypatch.setattr(
        lra, "load_released", lambda root, cache: asked.append(root) or lra.Splits(split, split, split, {})
    )
    for path in (folder, folder.parent, tmp_path):
        LRA_TASKS["pathfinder"].load(LRAConfig(data_path=str(path)))
    assert asked == [folder] * 3


# Batches


@pytest.fixture
def split():
    random = np.random.default_rng(1)
    builder = SplitBuilder(max_length=300)
    for n in range(205):
        builder.add(n, random.integers(0, 256, random.integers(1, 320), np.uint8).tobytes())
    return builder.build()


def rows_of(batch):
    padded, weights = batch
    return padded.labels[weights > 0].tolist()  # labels are numbers of the examples here


def test_an_epoch_has_every_example_once_in_known_shapes(split):
    batches = LRABatches(split, max_length=300, batch_size=16, seed=0)
    shapes, orders = set(), []
    for _ in range(3):
        seen = []
        for _ in range(len(batches)):
            batch = next(batches)
            shapes.add(batch[0].tokens.shape)
            longest = batch[0].lengths.max()
            assert longest <= batch[0].tokens.shape[1]
            seen += rows_of(batch)
        assert sorted(seen) == list(range(205))
        orders.append(seen)
    assert shapes == {(16, length) for length in batches.lengths}
    assert len(batches.lengths) <= 6 and orders[0] != orders[1] != orders[2]
    assert sorted(row for batch in batches.in_order() for row in rows_of(batch)) == list(range(205))


def test_short_texts_are_not_padded_to_the_longest():
    builder = SplitBuilder(max_length=4000)
    for n in range(64):
        builder.add(n, b"x" * (600 if n < 48 else 4000))
    batches = LRABatches(builder.build(), max_length=4000, batch_size=16, seed=0)
    assert batches.lengths == (1024, 4000)
    assert sum(next(batches)[0].tokens.shape[1] == 1024 for _ in range(len(batches))) == 3


def test_batches_resume_exactly(split):
    batches = LRABatches(split, max_length=300, batch_size=16, seed=3)
    for _ in range(len(batches) + 5):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(2 * len(batches))]
    again = LRABatches(split, max_length=300, batch_size=16, seed=3)
    again.set_state(state)
    for one, other in zip(expected, [next(again) for _ in expected], strict=True):
        np.testing.assert_array_equal(one[0].tokens, other[0].tokens)
        np.testing.assert_array_equal(one[0].labels, other[0].labels)
    with pytest.raises(ValueError, match="of seed 4"):
        LRABatches(split, max_length=300, batch_size=16, seed=4).set_state(state)


def test_two_towers_are_padded_by_the_longer():
    builder = SplitBuilder(max_length=100, towers=2)
    for n in range(8):
        builder.add(n, b"a" * 5, b"b" * (90 if n % 2 else 20))
    batches = LRABatches(builder.build(), max_length=100, batch_size=4, seed=0)
    shapes = {next(batches)[0].tokens.shape for _ in range(len(batches))}
    assert shapes == {(4, 2, 32), (4, 2, 100)}


def test_processes_share_a_batch(split):
    whole = LRABatches(split, max_length=300, batch_size=16, seed=0)
    parts = [LRABatches(split, max_length=300, batch_size=16, seed=0, rows=slice(k, k + 8)) for k in (0, 8)]
    for _ in range(len(whole)):
        joined = np.concatenate([next(part)[0].tokens for part in parts])
        np.testing.assert_array_equal(next(whole)[0].tokens, joined)
