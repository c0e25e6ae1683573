import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxattn_train.engine import checkpoints, resume, sharding
from jaxattn_train.engine.checkpoints import Checkpoints
from jaxattn_train.engine.loop import TrainState
from jaxattn_train.errors import TrainingFailed, UserError

IDENTITY = {"lr": 0.1, "seeds": 1}


def _state(value):
    array = jnp.full((1, 4, 8), float(value))
    return TrainState({"embedding": array}, {"mu": {"embedding": array}}, jnp.array([value]), jnp.array([-1]))


def _target(mesh=None, spec=None):
    mesh = mesh or sharding.make_mesh("", batch_size=8, accumulate=1)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec if spec and x.ndim == 3 else PartitionSpec())
        ),
        _state(0),
    )


@pytest.fixture
def store(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (45, None)):
        store.save(step, _state(step), {"identity": IDENTITY, "step": step}, loss)
    store.wait()
    yield store
    store.close()


def _damage_arrays(folder):
    for file in (folder / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:40])


def test_keeps_the_newest_and_the_best(store):
    assert store.steps() == [20, 40, 45]
    assert store.best_step() == 20
    reopened = Checkpoints(store.folder, keep=2, read_only=True)
    assert reopened.best_step() == 20


def test_accuracy_is_best_where_it_is_highest(tmp_path):
    store = Checkpoints(tmp_path / "run" / "checkpoints", metric="val_accuracy")
    for step, accuracy in ((10, 0.3), (20, 0.9), (30, 0.5), (40, 0.6)):
        store.save(step, _state(step), {}, accuracy)
    store.wait()
    assert (store.steps(), store.best_step()) == ([20, 40], 20)
    store.close()
    with pytest.raises(UserError, match="measured by val_accuracy, not by val_loss"):
        Checkpoints(store.folder, read_only=True)


def test_restores_state_and_record(store):
    state, record, warnings = resume.restore(store, _target(), IDENTITY, step=None)
    assert (int(state.step[0]), record["step"], warnings) == (45, 45, [])
    np.testing.assert_array_equal(state.params["embedding"], np.full((1, 4, 8), 45.0))
    np.testing.assert_array_equal(store.params(20, _target().params)["embedding"], np.full((1, 4, 8), 20.0))


def test_restores_onto_other_devices(store):
    mesh = sharding.make_mesh("fsdp=2", batch_size=8, accumulate=1)
    state = store.state(40, _target(mesh, PartitionSpec(None, None, "fsdp")))
    assert state.params["embedding"].addressable_shards[0].data.shape == (1, 4, 4)
    np.testing.assert_array_equal(state.opt_state["mu"]["embedding"], np.full((1, 4, 8), 40.0))


def test_what_is_saved_is_what_the_arrays_were(tmp_path):
    # The write goes on in the background while donated steps reuse the memory.
    store = Checkpoints(tmp_path / "checkpoints")
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = TrainState({"embedding": jnp.zeros((1, 512, 512))}, {}, jnp.array([0]), jnp.array([-1]))
    store.save(1, state, {})
    for _ in range(20):
        state = step(state)
    store.wait()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"embedding": jax.ShapeDtypeStruct((1, 512, 512), jnp.float32, sharding=device)}
    assert not np.asarray(store.params(1, target)["embedding"]).any()
    store.close()


@pytest.mark.parametrize(
    "damage",
    [
        _damage_arrays,
        lambda folder: shutil.rmtree(folder / "params"),
        lambda folder: (folder / "record" / "metadata").write_text('{"iden'),
        lambda folder: [shutil.rmtree(child) for child in folder.iterdir() if child.is_dir()],
    ],
    ids=["arrays cut off", "params gone", "record cut off", "empty"],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(store, damage):
    damage(store.folder / "45")
    state, _, warnings = resume.restore(store, _target(), IDENTITY, step=None)
    assert int(state.step[0]) == 40
    assert len(warnings) == 1
    assert str(store.folder / "45") in warnings[0]
    assert (store.folder.parent / "checkpoints-unreadable" / "45").is_dir()
    assert store.steps() == [20, 40]
    store.save(45, _state(45), {"identity": IDENTITY})  # its place is free again
    store.wait()
    assert store.steps()[-1] == 45


def test_a_damaged_metric_does_not_keep_the_folder_shut(store):
    (store.folder / "40" / "metrics" / "metrics").write_text("{")
    with pytest.raises(TrainingFailed, match="40 cannot be read"):
        Checkpoints(store.folder, read_only=True)
    reopened = Checkpoints(store.folder, keep=2)
    assert reopened.steps() == [20, 45]
    assert "40 cannot be read" in reopened.warnings[0]


def test_no_readable_checkpoint_is_an_error(store):
    for step in store.steps():
        _damage_arrays(store.folder / str(step))
    with pytest.raises(TrainingFailed, match="no checkpoint could be read"):
        resume.restore(store, _target(), IDENTITY, step=None)


def test_an_explicit_step_is_taken_or_refused(store):
    with pytest.raises(UserError, match="--resume-step must be one of 20, 40, 45; got 41"):
        resume.restore(store, _target(), IDENTITY, step=41)
    _damage_arrays(store.folder / "40")
    with pytest.raises(TrainingFailed, match="other steps: 20, 45"):
        resume.restore(store, _target(), IDENTITY, step=40)
    assert store.steps() == [20, 40, 45]
    state, _, _ = resume.restore(store, _target(), IDENTITY, step=20)
    assert int(state.step[0]) == 20
    assert store.steps() == [20]


def test_another_run_is_not_overwritten(store):
    with pytest.raises(UserError, match=r"lr 0\.1 there and 0\.2 here.*--overwrite"):
        resume.restore(store, _target(), IDENTITY | {"lr": 0.2}, step=None)
    assert store.steps() == [20, 40, 45]


def test_overwrite_deletes_only_what_a_run_writes(store):
    out = store.folder.parent
    (out / "notes.txt").write_text("mine")
    (out / "metrics.jsonl").write_text("{}")
    resume.clear(out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_only_one_process_may_train_in_a_folder(tmp_path):
    holding = f"""
import fcntl, os, sys
file = os.open({str(tmp_path / resume.LOCK)!r}, os.O_CREAT | os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training in"):
            resume.claim(tmp_path)
    finally:
        other.communicate()
    resume.claim(tmp_path)  # a lock ends with its process
    resume.claim(tmp_path)  # and this process may go on in its own folder
    trial = (
        "import fcntl, os, sys; fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    refused = subprocess.run(
        [sys.executable, "-c", trial, tmp_path / resume.LOCK], capture_output=True, text=True
    )
    assert "BlockingIOError" in refused.stderr
    (tmp_path / "metrics.jsonl").touch()
    assert resume.listing(tmp_path) == "metrics.jsonl"


def test_find_accepts_the_run_folder_and_its_checkpoints(store, tmp_path):
    assert checkpoints.find(str(store.folder)) == checkpoints.find(str(store.folder.parent)) == store.folder
    with pytest.raises(UserError, match="no such folder"):
        checkpoints.find(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints.find(str(store.folder / "20"))
