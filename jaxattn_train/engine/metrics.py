"""Metrics of a run: a JSON-lines file, TensorBoard, and the terminal."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
from tensorboardX import SummaryWriter

LN2 = 0.6931471805599453


def mean(values: Sequence[float]) -> float:
    """The mean over seeds."""
    return statistics.fmean(values)


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation over seeds; None for a single one.

    Examples:
        >>> spread([1.0, 3.0])
        1.4142135623730951
    """
    return statistics.stdev(values) if len(values) > 1 else None


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, the latter only of several seeds.

    Examples:
        >>> mean_and_spread([1.0, 3.0])
        '2.0000 ± 1.4142'
    """
    between = spread(values)
    return f"{mean(values):.4f}" + ("" if between is None else f" ± {between:.4f}")


class MetricsLog:
    """The records of a run, as lines of metrics.jsonl and curves in TensorBoard.

    A record is {"step", "kind": "train" or "eval", ...}; a list holds one number for each seed.
    """

    def __init__(
        self, out: Path, history: Sequence[Mapping[str, Any]], *, seeds: Sequence[int], enabled: bool = True
    ):
        """Rewrites the files from `history`, so that a resumed run holds no record twice.

        Args:
            out: run folder.
            history: the records up to the restored checkpoint; empty for a new run.
            seeds: names of the curves.
            enabled: write files; the leading process does.
        """
        self.history: list[dict[str, Any]] = [dict(record) for record in history]
        self._seeds = seeds
        self._file = self._board = None
        if enabled:
            path = out / "metrics.jsonl"
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(record) + "\n" for record in self.history))
            partial.replace(path)
            self._file = path.open("a")
            step = self.history[-1]["step"] if self.history else 0
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1, write_to_disk=True)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record."""
        self.history.append(record)
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name in ("step", "kind"):
                continue
            if isinstance(value, list):
                for seed, number in zip(self._seeds, value, strict=True):
                    self._board.add_scalar(f"{record['kind']}/{name}/seed{seed}", number, record["step"])
            elif isinstance(value, int | float):
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Flushes everything."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


class Progress:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, done: int, *, enabled: bool = True):
        self._total = total
        self._console = rich.console.Console(file=sys.stdout)
        self._enabled = enabled
        self._bar, self._text = None, ""
        if enabled and self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.BarColumn(bar_width=None),
                rich.progress.TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("compiling", total=total, completed=done)
            self._bar.start()

    def step(self, done: int, seconds_left: float | None) -> None:
        """Moves the bar."""
        if self._bar is not None:
            left = "" if seconds_left is None else f"{clock(seconds_left)} left"
            self._bar.update(self._task, completed=done, description=f"{self._text}{left}")

    def train(self, record: Mapping[str, Any], seconds_left: float) -> None:
        """Shows a training record."""
        text = f"loss {mean(record['loss']):.3f}, {record['tokens_per_second']:,.0f} tokens/s"
        if self._bar is not None:
            self._text = f"{text}, "
            self.step(record["step"], seconds_left)
        else:
            self.say(f"step {record['step']}/{self._total}: {text}, {clock(seconds_left)} left")

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Examples:
        >>> clock(3725)
        '1:02:05'
    """
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
