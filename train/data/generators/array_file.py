"""Named integer arrays in one file whose bytes depend on their content alone, checked by SHA-256 when read.

A line of JSON (what the arrays are of, their types and shapes, the hash of what follows), then the raw bytes,
little-endian. `npz` would hold a compressor's output, which differs between versions of zlib.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.errors import UserError

_FORMAT = "jaxattn arrays 1"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, about: Mapping[str, Any]) -> str:
    """Writes the arrays whole or not at all.

    Args:
        path: the file; its folder is made.
        arrays: integers by name.
        about: what they are, JSON-able; `read_arrays` asks for the same.

    Returns:
        SHA-256 of the arrays' bytes.

    Raises:
        UserError: the file cannot be written.
    """
    little = {name: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for name, a in arrays.items()}
    digest = hashlib.sha256()
    for array in little.values():
        digest.update(array.data)
    header = {
        "format": _FORMAT,
        "about": dict(about),
        "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in little.items()},
        "sha256": digest.hexdigest(),
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(json.dumps(header, sort_keys=False).encode() + b"\n")
            for array in little.values():
                file.write(array.data)
        partial.replace(path)  # atomic: a reader sees the whole file or none
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def read_arrays(path: Path, *, about: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """Reads what `write_arrays` wrote.

    Args:
        path: the file.
        about: what it must be of.

    Returns:
        The arrays, read-only; None if there is no such file or it is of something else.

    Raises:
        UserError: the file is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    end = content.find(b"\n")
    try:
        header = json.loads(content[: max(end, 0)])
        known = header["format"] == _FORMAT
    except (ValueError, KeyError, TypeError):
        known = False
    body = memoryview(content)[end + 1 :]
    if not known or hashlib.sha256(body).hexdigest() != header.get("sha256"):
        raise UserError(f"{path} is damaged (its SHA-256 is not the one it was written with); delete it.")
    if header["about"] != json.loads(json.dumps(dict(about))):
        return None
    arrays, offset = {}, 0
    for name, (kind, shape) in header["arrays"].items():
        dtype = np.dtype(kind)
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(body, dtype, count, offset).reshape(shape)
        offset += count * dtype.itemsize
    return arrays
