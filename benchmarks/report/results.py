"""Reading and writing result files."""

import json
import pathlib
import sys
from typing import Any

# What a file can be the result of: the subcommands that measure.
KINDS = ("attention", "features", "training-step", "head-step")


def load(path: pathlib.Path, *kinds: str) -> dict[str, Any]:
    """The document in a result file.

    Args:
        path: the file.
        kinds: whose results are accepted; `attention` only if none is named.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such result.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    kinds = kinds or KINDS[:1]
    if not isinstance(document, dict) or document.get("benchmark") not in kinds:
        raise ValueError(f"{path} is no result of `python -m benchmarks {' or '.join(kinds)}`.")
    return document


def write(document: dict[str, Any], path: pathlib.Path) -> None:
    """Replaces the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".partial")
    fresh.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)
