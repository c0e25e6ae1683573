"""Checkpoints of a run with Orbax: written asynchronously and atomically, the newest few and the best kept.

A step folder holds three items: `params`, `optimizer` (moments, step counts) and `record`, a JSON of everything
else (configuration, vocabulary, position in the data, metrics so far).
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxattn_train.engine.loop import TrainState
from jaxattn_train.errors import TrainingFailed, UserError

FOLDER, OPTIMIZER = "checkpoints", "optimizer"
BEST = {"val_loss": "min", "val_accuracy": "max", "val_f1": "max"}
"""Metrics that can decide which checkpoint is the best, and whether they are minimised or maximised."""


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path, *, keep: int = 1, read_only: bool = False, metric: str = "val_loss"):
        """Opens the folder.

        Args:
            folder: holds one subfolder for each step; created unless `read_only`.
            keep: newest steps to keep, next to the best.
            read_only: change nothing on disk.
            metric: decides which is the best; one of `BEST`.
        """
        self._metric = metric
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = folder.resolve()
        self.warnings: list[str] = []
        """Damaged checkpoints that were moved aside to open the folder."""
        self._check_metrics(read_only)
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(
                    n=1,
                    get_metric_fn=self._score,
                    reverse=BEST[metric] == "min",
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                # best_fn makes Orbax write the metrics; what is kept is decided by the policy alone.
                best_fn=self._score,
                best_mode=BEST[metric],
                preservation_policy=policy,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )

    def steps(self) -> list[int]:
        """The steps that can be restored, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The best step on the validation data, or the newest where none was evaluated."""
        best = self._manager.best_step()
        return best if best is not None else max(self.steps(), default=None)

    def save(self, step: int, state: TrainState, record: dict[str, Any], score: float | None = None) -> None:
        """Starts writing a checkpoint; returns as soon as the arrays are copied.

        Args:
            step: updates so far; an existing checkpoint of this step stays.
            state: arrays, all finite.
            record: JSON-able.
            score: decides which checkpoint is the best; None for one that was not evaluated.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(_optimizer_part(state)),
                record=ocp.args.JsonSave(record),
            ),
            metrics=None if score is None else {self._metric: score},
            force=True,
        )

    def is_preempted(self, step: int) -> bool:
        """Whether any of several processes got SIGTERM, by which clusters announce preemption; never with one alone.

        All processes ask after every step, and are told so after the same one.
        """
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Blocks until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and closes."""
        self.wait()
        self._manager.close()

    def record(self, step: int) -> dict[str, Any]:
        """The JSON part of a checkpoint.

        Raises:
            TrainingFailed: it cannot be read.
        """
        return self._restore(step, record=ocp.args.JsonRestore())["record"]

    def params(self, step: int, target: Any) -> Any:
        """The parameters alone, placed as `target` (shape structs with shardings) says.

        Raises:
            TrainingFailed: they cannot be read.
        """
        return self._restore(step, params=ocp.args.StandardRestore(target))["params"]

    def state(self, step: int, target: TrainState) -> TrainState:
        """The whole training state, placed as `target` (shape structs with shardings) says.

        The devices may differ from those it was saved on.

        Raises:
            TrainingFailed: it cannot be read.
        """
        parts = self._restore(
            step,
            params=ocp.args.StandardRestore(target.params),
            optimizer=ocp.args.StandardRestore(_optimizer_part(target)),
        )
        return TrainState(params=parts["params"], **parts["optimizer"])

    def delete_after(self, step: int) -> None:
        """Deletes every later checkpoint."""
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def keep_best(self) -> None:
        """Waits, closes, and deletes all but the parameters and the record of the best checkpoint."""
        best = self.best_step()
        for step in self.steps():
            if step != best:
                self._manager.delete(step)
        self.close()
        if jax.process_index() == 0:
            shutil.rmtree(self.folder / str(best) / OPTIMIZER, ignore_errors=True)

    def can_resume(self, step: int) -> bool:
        """Whether `keep_best` has left the optimiser's part of a checkpoint."""
        return (self.folder / str(step) / OPTIMIZER).exists()

    def set_aside(self, step: int) -> Path:
        """Moves a step folder that cannot be read out of the way; returns its new path."""
        target = _set_aside(self.folder, step)
        self._manager.reload()
        return target

    def _check_kind(self, metrics: dict[str, float]) -> None:
        others = [name for name in BEST if name in metrics and name != self._metric]
        if others and self._metric not in metrics:
            raise UserError(
                f"{self.folder.parent} holds another kind of run: its checkpoints are measured by {others[0]}, not "
                f"by {self._metric}. Choose another folder."
            )

    def _score(self, metrics: Any) -> float:
        return metrics[self._metric]

    def _check_metrics(self, read_only: bool) -> None:
        # Orbax reads every step's metrics when it opens a folder, and fails on one damaged file.
        for step in sorted(int(child.name) for child in _step_folders(self.folder)):
            try:
                file = self.folder / str(step) / "metrics" / "metrics"
                if file.exists():
                    self._check_kind(metrics := json.loads(file.read_text()))
                    self._score(metrics)
            except (OSError, ValueError, KeyError, TypeError) as error:
                message = f"the checkpoint {self.folder / str(step)} cannot be read ({_first_line(error)})"
                if read_only:
                    raise TrainingFailed(f"{message}; delete it or move it away.") from error
                self.warnings.append(f"warning: {message}; moved it to {_set_aside(self.folder, step)}")

    def _restore(self, step: int, **items: Any) -> Any:
        # Damage raises any kind of error, depending on the part (missing file, bad JSON, failed checksum).
        try:
            for item in ("params", "optimizer"):
                if item in items:
                    _verify(self.folder / str(step) / item)
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise TrainingFailed(
                f"the checkpoint {self.folder / str(step)} cannot be read ({_first_line(error)})"
            ) from error


def find(path: str) -> Path:
    """The checkpoints folder of a run folder, or a path to it.

    Raises:
        UserError: there is none.
    """
    given = Path(path)
    for folder in (given / FOLDER, given):
        if _step_folders(folder):
            return folder
    if not given.exists():
        raise UserError(f"no such folder: {path}.")
    raise UserError(f"{path} holds no checkpoint; give a run folder such as runs/charlm-demo.")


def metric_of(folder: Path) -> str:
    """Which metric decides on the best checkpoint in a folder; the first of `BEST` where none was evaluated."""
    for step in _step_folders(folder):
        try:
            found = json.loads((step / "metrics" / "metrics").read_text())
            return next(name for name in BEST if name in found)
        except (OSError, ValueError, TypeError, StopIteration):
            continue
    return next(iter(BEST))


def _step_folders(folder: Path) -> list[Path]:
    return [c for c in folder.iterdir() if c.name.isdigit() and c.is_dir()] if folder.is_dir() else []


def _set_aside(folder: Path, step: int) -> Path:
    target = folder.parent / f"{folder.name}-unreadable" / str(step)
    if jax.process_index() == 0:
        target.parent.mkdir(exist_ok=True)
        number = 1
        while target.exists():
            target, number = target.with_name(f"{step}-{number}"), number + 1
        (folder / str(step)).rename(target)
    return target


def _verify(item: Path) -> None:
    """Reads every entry of an item's array store once, which verifies its checksums.

    Orbax reads all arrays concurrently, and prints a traceback for each one that fails; here only the first raises.
    """
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
    for key in store.list().result():
        store.read(key).result()


def _first_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _optimizer_part(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step, "failed": state.failed}
