"""Result files: reading, writing, and the line of progress printed meanwhile."""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure.provenance import provenance

Row = Mapping[str, Any]
# The subcommands that write a result file, which says in "benchmark" whose it is.
KINDS = (
    "attention",
    "features",
    "training-step",
    "head-step",
    "sentences",
    "rounding",
    "compile-time",
    "compile",
    "pods",
)


def new_document(kind: str, settings: Mapping[str, Any], rows: Sequence[Row] = ()) -> dict[str, Any]:
    """A result of this process, incomplete so far."""
    return {
        "benchmark": kind,
        "complete": False,
        "provenance": provenance(),
        "settings": dict(settings),
        "rows": list(rows),
    }


def load(path: pathlib.Path, *kinds: str) -> dict[str, Any]:
    """The document in a result file; the list of rows that `compile` writes becomes one.

    Args:
        path: the file.
        kinds: whose results are accepted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such result.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if isinstance(document, list):  # rows of several runs, each with its own versions
        document = {"benchmark": "compile", "rows": document}
    if not isinstance(document, dict) or document.get("benchmark") not in kinds:
        raise ValueError(f"{path} is not a result of `python -m benchmarks {' or '.join(kinds)}`.")
    return document


def write(document: Mapping[str, Any] | Sequence[Row], path: pathlib.Path) -> None:
    """Replaces the file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def finish(document: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the document as complete."""
    document["complete"] = True
    write(document, path)
    say(f"wrote {path}")


def say(text: str) -> None:
    """Prints one line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)
