"""The ledger of a sweep: one JSON line for each run that has ended, appended and never changed."""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxattn_train.errors import UserError

RESULTS = "results.jsonl"
PATIENCE = 60.0

Key = tuple[str, int]
"""Attention and seed."""


class Ledger:
    """The lines of a sweep's folder, which is locked while the ledger is open.

    Args:
        folder: of the sweep; made when it is missing.
        settings: what all of its runs share, JSON-able.

    Raises:
        UserError: the folder holds a sweep with other settings, or another process has it open.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / RESULTS
        self.lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        """Inherited by the runs, so that the folder stays locked while one outlives a killed sweep."""
        _wait_for(self.lock, folder)
        _check_settings(folder / "sweep.json", settings)
        _cut_torn_line(self.path)
        self._records = {key(record): record for record in read(self.path)}

    def get(self, attention: str, seed: int) -> dict[str, Any] | None:
        """The last line of a run; None if there is none."""
        return self._records.get((attention, seed))

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds a line; when this returns, it is on the disk."""
        with self.path.open("ab") as file:
            file.write((json.dumps(record) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        self._records[key(record)] = dict(record)

    def close(self) -> None:
        """Unlocks the folder."""
        os.close(self.lock)


def key(record: Mapping[str, Any]) -> Key:
    """What identifies a run in its sweep."""
    return record["attention"], record["seed"]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a sweep, oldest first; an incomplete last line, as a crash leaves it, is skipped.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        UserError: a line is not readable.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            key(record)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}, is no line of a sweep; delete it or the file."
            ) from error
        records.append(record)
    return records


def _cut_torn_line(path: Path) -> None:
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    if path.exists():
        there = json.loads(path.read_text())
        changes = [
            f"{name} {there.get(name)!r} there and {settings[name]!r} here"
            for name in settings
            if there.get(name) != settings[name]
        ]
        if changes:
            raise UserError(
                f"{path.parent} holds a sweep with other settings: {', '.join(changes)}. Choose another --out."
            )
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(settings, indent=1) + "\n")
    partial.replace(path)


def _wait_for(lock: int, folder: Path) -> None:
    limit, told = time.monotonic() + PATIENCE, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > limit:
                os.close(lock)
                raise UserError(
                    f"another sweep is running in {folder}; wait, or choose another --out."
                ) from error
            if not told:
                print(f"waiting for another process in {folder}", flush=True)
                told = True
            time.sleep(0.1)
