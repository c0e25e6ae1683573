"""Named integer arrays in an uncompressed `.npz` file: bytes depend on the content alone, writes are atomic."""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxattn_train.errors import UserError

Arrays = dict[str, np.ndarray]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, about: Mapping[str, Any]) -> None:
    """Writes arrays; another process sees the whole file or none.

    Args:
        path: the file; its folder is made.
        arrays: integers by name.
        about: what they are, JSON-able; `read_arrays` asks for the same.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **{"about": np.array(json.dumps(about)), **arrays})  # type: ignore[arg-type]
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error


def read_arrays(path: Path, *, about: Mapping[str, Any]) -> Arrays | None:
    """Reads what `write_arrays` wrote.

    Args:
        path: the file.
        about: what it must be of.

    Returns:
        The arrays; None if there is no such file or it is of something else.

    Raises:
        UserError: the file cannot be read or is damaged (a zip file has a checksum for each array).
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        written = str(arrays.pop("about"))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read or is damaged ({error}); delete it.") from error
    return arrays if written == json.dumps(about) else None


def stored_or_made(path: Path, about: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a file, which is made and written first if it does not exist or is of something else."""
    arrays = read_arrays(path, about=about)
    if arrays is None:
        arrays = make()
        write_arrays(path, arrays, about=about)
    return arrays
