"""What generated sets share: stable random integers and bytes, shards of several processes, arrays in files."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxattn_train.data.generators import shards
from jaxattn_train.data.generators.array_file import read_arrays, write_arrays
from jaxattn_train.data.generators.counter_random import Stream
from jaxattn_train.data.generators.listops import ListOpsSpec, load_listops
from jaxattn_train.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Of the first 20 examples of shard 0 of seed 0: on every Python, numpy and machine.
DIGEST = """
import hashlib
from jaxattn_train.data.generators import listops, pathfinder
for made in (listops.make_shard(0, 0, 20, listops.TreeSpec()), pathfinder.make_shard(0, 0, 20)):
    print(hashlib.sha256(b"".join(array.tobytes() for array in made.values())).hexdigest())
"""
SHA256 = [
    "7bc15e305629a7b1fa6511a7632129b5db8b06f55106d0bb9d864d1fbcab7607",
    "5dc58599656b8a6bca9d9805f8cf8cffb70e6cee78755493a1a3b8c5624341c7",
]
KILLED = """
import pathlib
from jaxattn_train.data.generators.listops import ListOpsSpec, load_listops
if __name__ == "__main__":
    spec = ListOpsSpec(sizes=(40, 15, 10), shard_size=16)
    load_listops(spec, folder=pathlib.Path({folder!r}), workers={workers})
"""


@pytest.mark.parametrize("python", [sys.executable, "python3.12"])
def test_the_data_of_a_seed_never_change(python):
    path = shutil.which(python) or ""
    if not path or subprocess.run([path, "-c", "import numpy"], capture_output=True).returncode:
        pytest.skip(f"no {python} with numpy on the path")
    result = subprocess.run([path, "-c", DIGEST], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == SHA256


def test_random_integers_are_uniform_and_independent():
    values = Stream("uniform").below(10, 20_000)
    assert np.abs(np.bincount(values) / 20_000 - 0.1).max() < 0.01
    other = Stream("uniform", 1).below(10, 20_000)
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03
    parts = Stream("uniform")
    assert np.append(parts.bits(3), parts.bits(4)).tolist() == Stream("uniform").bits(7).tolist()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_generation_resumes(tmp_path, monkeypatch, workers):
    spec, folder, script = (
        ListOpsSpec(sizes=(40, 15, 10), shard_size=16),
        tmp_path / "killed",
        tmp_path / "a.py",
    )
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
    made, make = [], shards._make_one
    monkeypatch.setattr(shards, "_make_one", lambda job: (made.append(job), make(job)))
    resumed = load_listops(spec, folder=folder, workers=1)
    assert len(made) < 5
    whole = load_listops(spec, folder=tmp_path / "whole", workers=1)
    assert [part.sha256() for part in resumed[:3]] == [part.sha256() for part in whole[:3]]


def test_shards_of_other_arguments_are_not_taken(tmp_path):
    for lengths in ([3, 4], [5, 4]):
        tasks = {n: (length,) for n, length in enumerate(lengths)}
        made = shards.make_shards(_ones, tasks, folder=tmp_path, about={"task": "ones"}, workers=1)
        assert [len(made[n]["x"]) for n in made] == lengths


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
    flipped = whole.replace(np.int64(4).tobytes(), np.int64(5).tobytes(), 1)
    for content in (whole[:-1], b"", b"no archive", flipped, whole[:200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.npz cannot be read or is damaged"):
            read_arrays(path, about={"k": [1, 2]})
