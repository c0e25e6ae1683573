"""Reading result files."""

import json
import pathlib
from typing import Any


def load(path: pathlib.Path) -> dict[str, Any]:
    """The document in a result file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no result of `python -m benchmarks attention`.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(document, dict) or document.get("benchmark") != "attention":
        raise ValueError(f"{path} is no result of `python -m benchmarks attention`.")
    return document
