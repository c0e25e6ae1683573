"""Runs that are killed, told to stop, or moved to other devices, as processes of their own."""

import functools
import json
import shlex
import signal
import socket
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxattn_train.engine.checkpoints import Checkpoints
from jaxattn_train.engine.loop import StepMetrics

# Evaluating often makes the run slow enough to be hit in the middle; dropout and redrawn features make
# the random keys matter, and features have statistics to go on from.
FLAGS = shlex.split(
    "--attention features:oprf-gaussian:8:redraw=30 --dropout 0.1 --steps 200 --eval-every 20 --log-every 10 "
    "--seeds 2 --keep 20"
)
TIMEOUT = 120


def _wait_for(path, process):
    limit = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.005)


def _finish(process):
    output = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 0, output
    return output


def _arrays(out, step):
    manager = Checkpoints(out / "checkpoints", read_only=True)._manager
    # Runs of several processes had other devices.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    whole = ocp.args.StandardRestore(fallback_sharding=here)
    items = manager.restore(step, args=ocp.args.Composite(params=whole, optimizer=whole))
    return jax.tree.leaves_with_path((items["params"], items["optimizer"]))


def _records(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, start, tiny):
    """The same run twice: once straight, once killed, resumed, told to stop, and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    straight, broken = folder / "straight", folder / "broken"
    words = ["charlm", *tiny, *FLAGS, "--out"]
    outputs = {"straight": _finish(start(*words, straight))}

    process = start(*words, broken)
    _wait_for(broken / "checkpoints" / "60", process)
    process.kill()
    process.communicate()
    assert not (broken / "summary.json").exists(), "it was finished before it could be killed"

    process = start(*words, broken)
    _wait_for(broken / "checkpoints" / "120", process)
    process.send_signal(signal.SIGTERM)
    outputs["stopped"] = process.communicate(timeout=TIMEOUT)[0]
    outputs["code"] = process.returncode
    outputs["resumed"] = _finish(start(*words, broken))
    return straight, broken, outputs


def _assert_equal(one, other, step):
    expected, got = _arrays(one, step), _arrays(other, step)
    assert len(expected) == len(got) > 10
    for (path, a), (_, b) in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(start, cli, tiny, text_file, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    words = ["charlm", *tiny, "--text-file", text_file, "--steps", 24, "--dropout", 0.1, "--out"]
    process = start(*words, broken, devices=8)
    _wait_for(broken / "checkpoints" / "4", process)
    process.kill()  # -9
    process.communicate()
    assert not (broken / "summary.json").exists(), "it was finished before it could be killed"
    code, out, _ = cli(*words, broken)
    assert code == 0
    assert "resuming after step" in out
    assert cli(*words, straight)[0] == 0
    _assert_equal(straight, broken, 24)


@pytest.mark.slow
def test_at_most_two_steps_are_in_flight(cli, tiny, text_file, tmp_path, monkeypatch):
    """Or a signal is noticed only after all steps that were dispatched: on a CPU, minutes."""
    waited, through = [], jax.block_until_ready
    monkeypatch.setattr("jax.block_until_ready", lambda x: [waited.append(x), through(x)][1])
    monkeypatch.setattr("jaxattn_train.engine.sharding.settle", lambda result: None)
    code, _, err = cli("charlm", *tiny, "--text-file", text_file, "--log-every", 8, "--out", tmp_path / "run")
    assert code == 0, err
    assert sum(isinstance(result, StepMetrics) for result in waited) == 7, (
        "after each of 8 steps, for the one before"
    )


@pytest.mark.slow
def test_ctrl_c_while_compiling_ends_with_130(start, tmp_path):
    words = ["charlm", "--num-layers", 8, "--no-compilation-cache", "--out", tmp_path / "run"]
    process = start(*words, PYTHONUNBUFFERED="1")
    while not (line := process.stdout.readline()).startswith("folder"):
        assert line, process.wait()
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 130, output
    assert output == "interrupted\n"


@pytest.mark.slow
def test_kill_and_resume_give_bit_equal_parameters(runs):
    straight, broken, _ = runs
    _assert_equal(straight, broken, 200)


@pytest.mark.slow
def test_metrics_of_a_resumed_run_have_no_gap_and_nothing_twice(runs):
    straight, broken, _ = runs
    evals = [[r for r in _records(out) if r["kind"] == "eval"] for out in (straight, broken)]
    assert evals[0] == evals[1]
    steps = [r["step"] for r in _records(broken) if r["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 200


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(runs):
    _, broken, outputs = runs
    assert outputs["code"] == 143, outputs["stopped"]
    assert "stopped after step" in outputs["stopped"]
    assert f"saved {broken}" in outputs["stopped"]
    assert "to resume: python -m train charlm" in outputs["stopped"]
    step = outputs["stopped"].split("stopped after step ")[1].split(";")[0]
    assert f"resuming after step {step}" in outputs["resumed"]


@pytest.mark.slow
def test_losses_on_eight_devices_equal_those_on_one(runs, cli, tiny, tmp_path):
    straight, _, _ = runs
    expected = [r for r in _records(straight) if r["kind"] == "train"]
    # The same run on this process's eight devices, its parameters split over two.
    code, *_ = cli(
        "charlm", *tiny, *FLAGS, "--eval-every", 100, "--out", tmp_path / "run", "--mesh", "fsdp=2"
    )
    assert code == 0
    got = [r for r in _records(tmp_path / "run") if r["kind"] == "train"]
    for a, b in zip(expected[:5], got[:5], strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


@pytest.fixture
def together(start):
    """together(*words): the same command in several processes, with four devices in all."""

    def run(*words, processes=2, **environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        of_all = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)} | environment
        return [
            start(*words, devices=4 // processes, JAX_PROCESS_ID=str(n), **of_all) for n in range(processes)
        ]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("processes, mesh", [(2, "fsdp=2"), (2, "sequence=4"), (4, "fsdp=4")])
def test_processes_train_as_one_and_their_checkpoint_fits_other_devices(
    together, cli, tiny, text_file, tmp_path, processes, mesh
):
    words = ["charlm", *tiny, "--text-file", text_file, "--mesh", mesh, "--out"]
    running = together(*words, tmp_path / "together", processes=processes)
    outputs = [_finish(process) for process in running]
    assert "done: validation loss" in outputs[0]
    assert not any("step" in output for output in outputs[1:])  # logs from process 0 only
    assert cli(*words, tmp_path / "alone")[0] == 0
    for expected, got in zip(_records(tmp_path / "alone"), _records(tmp_path / "together"), strict=True):
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            if name != "kind":
                np.testing.assert_allclose(got[name], value, rtol=1e-4)
    code, out, _ = cli(*words, tmp_path / "together")
    assert code == 0
    assert "all 8 steps are done already" in out


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_one_of_the_processes_is_killed_stalls_or_is_preempted(together, tiny, text_file, tmp_path, count):
    """Each time all end, with a message, and the same command goes on to the same bits."""
    together = functools.partial(together, processes=count)
    steps = ("--steps", 90, "--eval-every", 6, "--dropout", 0.1, "--keep", 99, "--stall-timeout", 6)
    words = ["charlm", *tiny, "--text-file", text_file, "--mesh", "fsdp=2", *steps, "--out"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for process in together(*words, straight):
        _finish(process)

    def interrupted(step, victim, number):
        """(exit codes, outputs) after a signal to one of the processes, once a step is saved."""
        processes = together(*words, broken)
        _wait_for(broken / "checkpoints" / str(step), processes[0])
        processes[victim].send_signal(number)
        others = [process for process in processes if process is not processes[victim]]
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in others]
        if number == signal.SIGSTOP:
            processes[victim].kill()
        outputs.append(processes[victim].communicate(timeout=TIMEOUT)[0])
        assert not (broken / "summary.json").exists(), "it was finished before it could be interrupted"
        return [process.returncode for process in (*others, processes[victim])], outputs

    # JAX aborts processes that notice the end of process 0 before that of the victim.
    ended = {1, -signal.SIGABRT}
    codes, outputs = interrupted(6, 1, signal.SIGKILL)
    assert codes[0] == 1 and "The same command in all processes resumes" in outputs[0], (codes, outputs)
    assert set(codes[1:-1]) <= ended, codes
    codes, outputs = interrupted(24, 1, signal.SIGSTOP)
    assert codes[0] == 1 and "no progress in 6 s" in outputs[0], (codes, outputs)
    assert set(codes[1:-1]) <= ended, codes
    codes, outputs = interrupted(42, count - 1, signal.SIGTERM)
    assert codes == [143] * count and "stopped after step" in outputs[0], (codes, outputs)
    resumed = [_finish(process) for process in together(*words, broken)]
    assert "resuming after step" in resumed[0]
    _assert_equal(straight, broken, 90)
