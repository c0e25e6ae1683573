"""The runs of a sweep, each in a process of its own: one after the other, or one a device."""

import dataclasses
import glob
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxattn_train.cli.parsing import slug
from jaxattn_train.engine.interrupt import StopRequest
from jaxattn_train.engine.metrics import clock
from jaxattn_train.studies.sweep.ledger import Ledger

KEPT = (
    *("steps", "parameters", "accuracy", "loss", "val_accuracy", "best_step", "evaluations", "measured_on"),
    *("compiled_shapes", "seconds", "seconds_per_step", "tokens_per_second", "peak_memory", "device"),
    *("versions", "config", "data"),
)
POLL = 0.05


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One attention with one seed."""

    attention: str
    seed: int

    def __str__(self) -> str:
        return f"{self.attention}, seed {self.seed}"

    def folder(self, sweep: Path) -> Path:
        """The run folder."""
        return sweep / "runs" / f"{slug(self.attention)}-seed{self.seed}"

    def flags(self, sweep: Path, common: Sequence[str]) -> list[str]:
        """Of lra."""
        own = ("--attention", self.attention, "--seed", str(self.seed), "--out", str(self.folder(sweep)))
        return [*common, *own]


@dataclasses.dataclass
class _Running:
    run: SweepRun
    process: subprocess.Popen[bytes]
    device: str | None
    log: Path


def devices(named: Sequence[int] | None, environment: Mapping[str, str] = os.environ) -> list[str | None]:
    """The GPU of each process that runs at the same time; [None] for one process with all of them.

    Args:
        named: --devices; None for those of CUDA_VISIBLE_DEVICES or the system.
        environment: of this process.

    Examples:
        >>> devices(None, {"CUDA_VISIBLE_DEVICES": "2,3"}), devices(None, {"JAX_PLATFORMS": "cpu"})
        (['2', '3'], [None])
    """
    if named is not None:
        return [str(number) for number in named]
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return [None]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        found: list[str] = [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]
    else:
        found = [name for name in visible.split(",") if name]
    return list(found) if len(found) > 1 else [None]


def run_all(
    runs: Sequence[SweepRun],
    ledger: Ledger,
    *,
    sweep: Path,
    common: Sequence[str],
    places: Sequence[str | None],
) -> int:
    """Runs them all; each gets its line in the ledger when it has ended by itself.

    Args:
        runs: what to run.
        ledger: gets the lines.
        sweep: the folder.
        common: flags of lra for all of them.
        places: from `devices`; as many run at a time.

    Returns:
        0, 1 if some failed, or 130 or 143 when a signal stopped the sweep (after its runs wrote checkpoints).
    """
    waiting, running, free = list(runs), list[_Running](), list(places)
    began, ended, failed = time.monotonic(), 0, 0
    stopping = False
    with StopRequest() as stop:
        try:
            while running or (waiting and stop.exit_code is None):
                if stop.exit_code is not None and not stopping:
                    stopping = True
                    print(f"stopping; waiting for {len(running)} to save", flush=True)
                    for item in running:
                        item.process.send_signal(signal.SIGTERM)
                while waiting and free and stop.exit_code is None:
                    running.append(_start(waiting.pop(0), free.pop(0), ledger, sweep, common))
                    print(f"started {running[-1].run}; see {running[-1].log}", flush=True)
                for item in [item for item in running if item.process.poll() is not None]:
                    running.remove(item)
                    free.append(item.device)
                    code = item.process.returncode
                    if code in (130, 143, -signal.SIGINT, -signal.SIGTERM):
                        stop.exit_code = stop.exit_code or 128 + abs(code) % 128
                        continue
                    record = outcome(item.run, code, item.run.folder(sweep), item.log)
                    ledger.add(record)
                    ended += 1
                    failed += record["status"] == "failed"
                    left = (time.monotonic() - began) / ended * (len(runs) - ended)
                    result = f"{item.run}: {_result(record)}; about {clock(left)} left"
                    print(f"{ended} of {len(runs)}: {result}", flush=True)
                time.sleep(POLL)
        finally:
            for item in running:  # only after a second Ctrl-C, or an error above
                item.process.kill()
                item.process.wait()
    return stop.exit_code or int(failed > 0)


def outcome(run: SweepRun, code: int, folder: Path, log: Path) -> dict[str, Any]:
    """The line of a run that ended by itself.

    Args:
        run: which.
        code: exit code of its process.
        folder: run folder.
        log: its output.
    """
    record: dict[str, Any] = {"attention": run.attention, "seed": run.seed}
    if code == 0:
        summary = json.loads((folder / "summary.json").read_text())
        return record | {"status": "finished"} | {name: summary[name] for name in KEPT}
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return record | {"status": "failed", "code": code, "message": (errors or lines or ["no output"])[-1]}


def _start(run: SweepRun, device: str | None, ledger: Ledger, sweep: Path, common: Sequence[str]) -> _Running:
    log = sweep / "logs" / f"{run.folder(sweep).name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ) | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jaxattn_train.studies.sweep.child",
                str(os.getpid()),
                *run.flags(sweep, common),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[ledger.lock],
            start_new_session=True,  # Ctrl-C goes to the sweep alone, which passes it on once
        )
    return _Running(run, process, device, log)


def _result(record: Mapping[str, Any]) -> str:
    if record["status"] == "failed":
        return f"failed with code {record['code']}: {record['message']}"
    return f"{record['measured_on']} accuracy {record['accuracy']['mean']:.4f}, {clock(record['seconds'])}"
