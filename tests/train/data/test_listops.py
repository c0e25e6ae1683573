import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from train.data.generators import listops, shards
from train.data.generators.array_file import read_arrays, write_arrays
from train.data.generators.counter_random import Stream
from train.data.generators.listops import ListOpsSpec, load_listops, make_shard, to_text
from train.data.generators.listops_trees import TOKENS, TreeSpec, draw_expressions
from train.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[3]
SMALL = ListOpsSpec(sizes=(40, 15, 10), shard_size=16)
# Of the first 20 examples of shard 0 of seed 0: on every Python, numpy and machine.
SHARD_SHA256 = "7bc15e305629a7b1fa6511a7632129b5db8b06f55106d0bb9d864d1fbcab7607"
# Of the three parts of SMALL.
SMALL_SHA256 = "65f72b9136e3c776bc27ea9dd2ac8e770d9914ee32758449a098ef40abd2dee5"
SHARD_DIGEST = (
    "import hashlib; from train.data.generators.listops import make_shard; "
    "from train.data.generators.listops_trees import TreeSpec; "
    "made = make_shard(0, 0, 20, TreeSpec()); "
    "print(hashlib.sha256(b''.join(made[k].tobytes() for k in ('codes', 'lengths', 'labels'))).hexdigest())"
)


@pytest.fixture(scope="module")
def drawn():
    made = make_shard(7, 3, 600, TreeSpec())
    ends = np.cumsum(made["lengths"])
    texts = [to_text(made["codes"][a:b]) for a, b in zip(np.append(0, ends[:-1]), ends, strict=True)]
    return texts, made["labels"].tolist()


def parse(text):
    """Nested lists [operator, argument, ...] of a text, and how deep its deepest digit lies."""
    stack, deepest = [[]], 0
    for word in text.split():
        if word == "]":
            done = stack.pop()
            stack[-1].append(done)
        elif word[0] == "[":
            stack.append([word[1:]])
        else:
            stack[-1].append(int(word))
            deepest = max(deepest, len(stack))
    (whole,) = stack[0]
    return whole, deepest


def evaluate(node):
    if isinstance(node, int):
        return node
    arguments = [evaluate(argument) for argument in node[1:]]
    named = {"MIN": min, "MAX": max, "MED": lambda a: int(np.median(a)), "SM": lambda a: sum(a) % 10}
    return named[node[0]](arguments)


def operators(node):
    if isinstance(node, int):
        return []
    return [node, *(deeper for argument in node[1:] for deeper in operators(argument))]


def specified(generator, depth=1):
    """A tree drawn as the published specification says, or an integer."""
    if depth == 10 or generator.random() > 0.25:
        return generator.randrange(10)
    name = generator.choice(["MIN", "MAX", "MED", "SM"])
    return [name, *(specified(generator, depth + 1) for _ in range(generator.randint(2, 10)))]


def tokens(node):
    return 1 if isinstance(node, int) else 2 + sum(map(tokens, node[1:]))


def test_every_answer_is_right(drawn):
    for text, label in zip(*drawn, strict=True):
        assert evaluate(parse(text)[0]) == label
    assert set(drawn[1]) == set(range(10))


def test_lengths_depths_and_arguments_are_as_specified(drawn):
    trees, depths = zip(*(parse(text) for text in drawn[0]), strict=True)
    lengths = [tokens(tree) for tree in trees]
    assert lengths == [len(text.split()) for text in drawn[0]]
    assert min(lengths) > 500 and max(lengths) < 2000
    assert max(depths) == 10
    nodes = [node for tree in trees for node in operators(tree)]
    assert {len(node) - 1 for node in nodes} == set(range(2, 11))
    counts = [sum(node[0] == name for node in nodes) for name in ("MIN", "MAX", "MED", "SM")]
    assert min(counts) > 0.23 * sum(counts)


def test_the_distribution_is_that_of_the_specification(drawn):
    generator = random.Random(0)
    reference = []
    while len(reference) < 300:
        tree = specified(generator)
        if 500 < tokens(tree) < 2000:
            reference.append(tree)
    ours = [parse(text)[0] for text in drawn[0]]
    edges = [500, 700, 900, 1150, 1500, 2000]
    shares = [np.histogram([tokens(t) for t in trees], edges)[0] / len(trees) for trees in (ours, reference)]
    np.testing.assert_allclose(*shares, atol=0.12)  # four standard deviations of the reference's share
    nodes = [[n for tree in trees for n in operators(tree)] for trees in (ours, reference)]
    arguments = [np.bincount([len(n) - 1 for n in every], minlength=11) / len(every) for every in nodes]
    np.testing.assert_allclose(*arguments, atol=0.01)
    digits = [
        np.bincount([a for n in every for a in n[1:] if isinstance(a, int)]) / len(every) for every in nodes
    ]
    np.testing.assert_allclose(*digits, atol=0.03)


def test_small_trees_are_all_there_and_the_bounds_are_strict():
    # At depth 2 an operator has 2 to 6 digits, so that lengths go from 4 to 8; taken are those between 4 and 8.
    made = draw_expressions(Stream("small"), 2000, TreeSpec(4, 8, max_depth=2, max_args=6))
    assert set(made["lengths"]) == {5, 6, 7}
    assert set(made["codes"]) == set(range(15))


def test_an_impossible_specification_ends():
    with pytest.raises(UserError, match="hardly one"):
        draw_expressions(Stream("x"), 1, TreeSpec(500, 2000, max_depth=2))
    with pytest.raises(UserError, match="between the bounds"):
        TreeSpec(10, 11)


def test_the_data_of_a_seed_never_change():
    made = make_shard(0, 0, 20, TreeSpec())
    content = b"".join(made[k].tobytes() for k in ("codes", "lengths", "labels"))
    assert hashlib.sha256(content).hexdigest() == SHARD_SHA256


def test_another_python_makes_the_same_data():
    python = shutil.which("python3.12") or ""
    if not python or subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode:
        pytest.skip("no python3.12 with numpy on the path")
    result = subprocess.run(
        [python, "-c", SHARD_DIGEST], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == SHARD_SHA256


def _hashes(splits):
    return [part.sha256() for part in splits[:3]]


def test_workers_do_not_matter_and_the_cache_is_used(tmp_path, monkeypatch):
    one = load_listops(SMALL, folder=tmp_path / "one", workers=1)
    assert hashlib.sha256(" ".join(_hashes(one)).encode()).hexdigest() == SMALL_SHA256
    assert [len(part) for part in one[:3]] == list(SMALL.sizes)
    assert [path.suffix for path in (tmp_path / "one").iterdir()] == [".npz"]  # no shards stay behind
    two = load_listops(SMALL, folder=tmp_path / "two", workers=2)
    (first,), (second,) = ((tmp_path / name).iterdir() for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    monkeypatch.setattr(listops, "make_shards", None)
    assert _hashes(load_listops(SMALL, folder=tmp_path / "two")) == _hashes(two)


def test_nothing_comes_twice(tmp_path, monkeypatch):
    few = ListOpsSpec(sizes=(60, 20, 20), shard_size=50, trees=TreeSpec(3, 5, max_depth=2, max_args=2))
    parts = load_listops(few, folder=tmp_path, workers=1)[:3]
    texts = [
        part.codes[start : start + size].tobytes()
        for part in parts
        for start, size in zip(part.starts[:, 0], part.lengths, strict=True)
    ]
    assert len(set(texts)) == len(texts) == 100  # of 400 there are, so that duplicates were drawn


KILLED = """
import pathlib, time
from train.data.generators import listops
from train.data.generators.listops import ListOpsSpec, load_listops
make = listops.make_shard
if __name__ == "__main__":
    spec = ListOpsSpec(sizes=(40, 15, 10), shard_size=16)
    load_listops(spec, folder=pathlib.Path({folder!r}), workers={workers})
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_generation_goes_on(tmp_path, monkeypatch, workers):
    whole = load_listops(SMALL, folder=tmp_path / "whole", workers=1)
    folder = tmp_path / "killed"
    script = tmp_path / "script.py"
    script.write_text(KILLED.format(folder=str(folder), workers=workers))
    process = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("*.shards/*.npz")) and time.monotonic() < deadline:
            assert process.poll() is None or list(folder.glob("*.npz"))
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    made = []
    monkeypatch.setattr(shards, "_make_one", lambda job: (made.append(job), ORIGINAL(job)))
    resumed = load_listops(SMALL, folder=folder, workers=1)
    assert len(made) < 5
    assert _hashes(resumed) == _hashes(whole)


ORIGINAL = shards._make_one


def test_shards_of_other_arguments_are_not_taken(tmp_path):
    done = shards.make_shards(_ones, {0: (3,), 1: (4,)}, folder=tmp_path, about={"task": "ones"}, workers=1)
    assert [len(done[n]["x"]) for n in done] == [3, 4]
    again = shards.make_shards(_ones, {0: (5,), 1: (4,)}, folder=tmp_path, about={"task": "ones"}, workers=1)
    assert [len(again[n]["x"]) for n in again] == [5, 4]


def test_a_worker_that_dies_gives_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="one of 2 worker processes died"):
        shards.make_shards(_die, {0: (), 1: ()}, folder=tmp_path, about={"task": "x"}, workers=2)


def _die():
    os._exit(9)


def _ones(count):
    return {"x": np.ones(count, np.uint8)}


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "x.npz"
    write_arrays(path, {"a": np.arange(5), "b": np.zeros((2, 3), np.uint8)}, about={"k": (1, 2)})
    stored = read_arrays(path, about={"k": [1, 2]})
    np.testing.assert_array_equal(stored["a"], np.arange(5))
    assert stored["b"].shape == (2, 3) and set(stored) == {"a", "b"}
    assert read_arrays(path, about={"k": 3}) is None
    assert read_arrays(tmp_path / "none.npz", about={}) is None
    whole = path.read_bytes()
    four = np.int64(4).tobytes()
    damaged = [whole[:-1], b"", b"no archive", whole.replace(four, np.int64(5).tobytes(), 1), whole[:200]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.npz cannot be read or is damaged"):
            read_arrays(path, about={"k": [1, 2]})


def test_padding(tmp_path):
    part = load_listops(SMALL, folder=tmp_path, workers=1).test
    batch = part.padded(np.array([3, 0]), 2000)
    assert batch.tokens.shape == (2, 2000) and batch.tokens.dtype == np.int32
    for row, index in enumerate([3, 0]):
        text = to_text(batch.tokens[row, : batch.lengths[row]] - 1)
        assert evaluate(parse(text)[0]) == batch.labels[row] == part.labels[index]
        assert not batch.tokens[row, batch.lengths[row] :].any()
    assert batch.tokens.max() < listops.VOCABULARY_SIZE == len(TOKENS) + 1 == 16
    with pytest.raises(ValueError, match="length"):
        part.padded(np.arange(2), 100)


def test_bad_sizes_are_named(tmp_path):
    with pytest.raises(UserError, match="three sizes"):
        ListOpsSpec(sizes=(1, 0, 1))
    with pytest.raises(UserError, match="workers must be at least 1; got 0"):
        load_listops(SMALL, folder=tmp_path, workers=0)


def test_random_integers_are_uniform_and_independent():
    values = Stream("uniform").below(10, 20_000)
    assert np.abs(np.bincount(values) / 20_000 - 0.1).max() < 0.01
    other = Stream("uniform", 1).below(10, 20_000)
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03
    parts = Stream("uniform")
    assert np.append(parts.bits(3), parts.bits(4)).tolist() == Stream("uniform").bits(7).tolist()
