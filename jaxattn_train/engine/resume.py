"""Resuming of runs: the lock of a run folder, and its newest readable checkpoint."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxattn_train.cli.options import WRITTEN_BEFORE, TaskConfig, flag
from jaxattn_train.engine.checkpoints import FOLDER, Checkpoints
from jaxattn_train.engine.loop import TrainState
from jaxattn_train.errors import TrainingFailed, UserError

LOCK = ".lock"
# Everything a run writes: --overwrite deletes these and nothing else.
WRITTEN = (
    *(
        FOLDER,
        f"{FOLDER}-unreadable",
        "tensorboard",
        "encoder",
        "model",
        "evaluations",
        "config.json",
        "metrics.jsonl",
        "summary.json",
    ),
    *("sample.txt", "predictions.csv", "loss.png", "gates.png", "morlet.png", "curves.png", "confusion.png"),
    "relevance.png",
)


_claimed: dict[Path, int] = {}


def claim(out: Path) -> None:
    """Locks a run folder until this process ends, however it ends.

    Raises:
        UserError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    file = out.resolve() / LOCK
    if jax.process_index() or file in _claimed:
        return
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(descriptor)
        raise UserError(
            f"another process is training in {out}; wait until it has ended, or choose another --out."
        ) from error
    except OSError:  # a file system without locks, such as some network drives
        os.close(descriptor)
        return
    _claimed[file] = descriptor


def listing(out: Path) -> str:
    """The names in a run folder, for the terminal."""
    return ", ".join(sorted(path.name for path in out.iterdir() if path.name != LOCK))


def clear(out: Path) -> None:
    """Deletes what an earlier run wrote."""
    if jax.process_index() == 0:
        for name in WRITTEN:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("cleared")


def is_done(
    config: TaskConfig, identity: Mapping[str, Any], closing: Callable[[dict[str, Any]], Sequence[str]]
) -> bool:
    """Whether the run is finished, with equal settings and data, and has its report; if so, prints the end of that.

    Args:
        config: of the run.
        identity: what must be equal, the data of the report included.
        closing: content of summary.json -> the lines to print.
    """
    if config.run.overwrite or config.run.resume_step is not None:
        return False
    out = Path(config.out())
    try:
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    except (OSError, ValueError):
        return False
    here = json.loads(json.dumps({"config": dataclasses.asdict(config), "identity": identity}))
    there = {name: dict(summary.get(name, {})) for name in here}
    for both in (here, there):
        both["config"].pop("run", None)  # its seeds are in the identity
    if here != there:
        return False
    if jax.process_index() == 0:
        print(f"all {summary['steps']} steps are done already")
        print("\n".join(closing(summary)))
        print(f"files: {listing(out)} in {out}")
    return True


def restore(
    store: Checkpoints,
    target: TrainState,
    identity: Mapping[str, Any],
    *,
    step: int | None,
    data: Mapping[str, Any] = {},
) -> tuple[TrainState, dict[str, Any], list[str]] | None:
    """The newest readable checkpoint of the same run.

    A checkpoint that cannot be read is moved aside with a warning, and the one before it is used. An explicit `step`
    is used or fails.

    Args:
        store: the run's checkpoints.
        target: shapes and shardings of the state.
        identity: what must be equal in the checkpoint (see `identity()` of the configurations).
        data: options of the data, for the error where these are not equal.
        step: only this one; later ones are deleted.

    Returns:
        The state, the record, and warnings; None when there is no checkpoint.

    Raises:
        UserError: the folder holds another run, or `step` does not exist.
        TrainingFailed: no checkpoint can be read.
    """
    steps = store.steps()
    if step is not None and step not in steps:
        there = f"one of {', '.join(map(str, steps))}" if steps else "left out: there are no checkpoints"
        raise UserError(f"--resume-step must be {there}; got {step}.")
    warnings = list(store.warnings)
    out = store.folder.parent
    if (out / "summary.json").exists() and steps and not store.can_resume(steps[-1]):
        raise UserError(
            f"{out} is finished and keeps its best parameters alone (--best-only), for predict and evaluate. Choose "
            "another --out, or start over there with --overwrite."
        )
    for candidate in [step] if step is not None else reversed(steps):
        try:
            record = store.record(candidate)
            _check_same_run(store, record, identity, data)
            state = store.state(candidate, target)
        except TrainingFailed as error:
            if step is not None:
                others = ", ".join(str(s) for s in steps if s != step) or "none"
                raise TrainingFailed(f"{error}; other steps: {others}.") from error
            moved = store.set_aside(candidate)
            warnings.append(f"warning: {error}; moved it to {moved}")
            continue
        if step is not None:
            store.delete_after(step)
        return state, record, warnings
    if warnings:
        raise TrainingFailed(
            "no checkpoint could be read:\n"
            + "\n".join(warnings)
            + "\nThe same command now starts from the beginning."
        )
    return None


def _check_same_run(
    store: Checkpoints, record: Mapping[str, Any], identity: Mapping[str, Any], data: Mapping[str, Any]
) -> None:
    changes = _changes(WRITTEN_BEFORE | record["identity"], identity)
    if changes:
        if any(" " in name for name in changes):
            changes |= _changes(record["config"]["data"], json.loads(json.dumps(data)))
        raise UserError(
            f"{store.folder.parent} holds a run with other settings: {', '.join(changes.values())}. Choose another "
            "--out, or start over there with --overwrite (its checkpoints are deleted)."
        )


def _changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """What to say about each setting that differs; digests have names of several words, and are not shown."""
    return {
        name: f"other {name}" if " " in name else f"{flag(name)} {there.get(name)!r} there and {value!r} here"
        for name, value in here.items()
        if there.get(name) != value
    }
