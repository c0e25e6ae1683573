"""The files of data sets: found in the user's folders or the cache, read with clear errors."""

import contextlib
import gzip
import hashlib
import lzma
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxattn_train.data.download import RemoteFile, cache, download
from jaxattn_train.errors import UserError


def find(names: Sequence[str], data_path: str | None, *, inside: str | None = None) -> Path | None:
    """The first of `names` in the first folder that has one.

    Folders are --data-path if it is given, otherwise JAXATTN_DATA and the user's cache.

    Args:
        names: paths below a data folder, the preferred one first; --data-path may hold their last parts directly.
        data_path: value of --data-path, which may also be the file itself.
        inside: what such a folder holds; --data-path may be the folder itself.

    Returns:
        An existing file or folder, or None.

    Raises:
        UserError: --data-path is given and holds none of them.
    """
    if data_path is None:
        environment = os.environ.get("JAXATTN_DATA")
        folders = [*([Path(environment)] if environment else []), cache()]
        return next((path for folder in folders for name in names if (path := folder / name).exists()), None)
    given = Path(data_path)
    if given.is_file() or (inside is not None and (given / inside).exists()):
        return given
    for name in names:
        for path in (given / name, given / Path(name).name):
            if path.exists():
                return path
    missing = "holds none of" if given.exists() else "does not exist; it should hold one of"
    raise UserError(f"--data-path {data_path} {missing}: {', '.join(names)}.")


def obtain(file: RemoteFile, data_path: str | None = None) -> Path:
    """The path of a file with the expected checksum: found (see `find`), or else downloaded into the cache.

    Args:
        file: which.
        data_path: value of --data-path: a folder or the file.

    Raises:
        UserError: the file is another one, cannot be read, or cannot be downloaded; it says what to do.
    """
    path = find([file.name], data_path)
    if path is None:
        return download(file)
    check(file, path)
    return path


def check(file: RemoteFile, path: Path) -> None:
    """Raises unless the file at `path` has the expected SHA-256."""
    with readable(path), path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise UserError(
            f"{path} is not {file.what}: SHA-256 is {digest}, expected {file.sha256}. Delete or replace "
            f"it{file.otherwise}."
        )


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, which may be compressed (.gz, .xz).

    Raises:
        UserError: it cannot be read or is not UTF-8; it names the line.
    """
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)
    with readable(path):
        content = unpack(path.read_bytes())
    return decode(content, path)


def decode(content: bytes, source: Path | str) -> str:
    """UTF-8 text; UserError naming the line and the byte, counted from 0, where it is not."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}:{line}: not UTF-8 text (byte {error.start}); convert it first.") from error


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns errors of reading `path` into a UserError."""
    try:
        yield
    except (OSError, EOFError, ValueError, lzma.LZMAError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {getattr(error, 'filename', None) or path}: {reason}.") from error


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of an archive."""
    with readable(path), tarfile.open(path) as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                yield member.name, file.read()
