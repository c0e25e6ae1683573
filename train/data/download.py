"""Finds the file of a data set, or fetches it from its public home once: checked, resumed, never half there."""

import contextlib
import dataclasses
import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import rich.console
import rich.progress

from train.errors import UserError

CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file with a public home."""

    name: str
    """Its path below a data folder, such as "sst2/train.tsv"."""
    url: str
    sha256: str
    what: str
    """What it should be, for messages, such as "the tinyshakespeare text"."""
    offline: str
    """What the user can do without a network: a sentence."""
    otherwise: str = ""
    """What the user can do with a file that is not this one, besides replacing it: ", or ..."."""


def folders(data_path: str | None) -> list[Path]:
    """Where data is looked for: only --data-path if given, else the folder JAXATTN_DATA and the user's cache."""
    if data_path is not None:
        return [Path(data_path)]
    environment = os.environ.get("JAXATTN_DATA")
    return [*([Path(environment)] if environment else []), cache()]


def cache() -> Path:
    """The folder that downloads go to."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("jaxattn"))


def find(names: Sequence[str], data_path: str | None) -> Path | None:
    """The first of `names` in the first folder that has one; a --data-path may also be the thing itself.

    Args:
        names: paths below a data folder, the preferred one first; --data-path may hold their last parts directly.
        data_path: what --data-path says.

    Returns:
        An existing file or folder, or None.

    Raises:
        UserError: --data-path is given and holds none of them.
    """
    if data_path is not None and Path(data_path).is_file():
        return Path(data_path)
    for folder in folders(data_path):
        for name in names:
            tries = [name] if data_path is None else [name, Path(name).name]
            for path in (folder / part for part in tries):
                if path.exists():
                    return path
    if data_path is not None:
        missing = "holds none of" if Path(data_path).exists() else "does not exist; it should hold one of"
        raise UserError(f"--data-path {data_path} {missing}: {', '.join(names)}.")
    return None


def obtain(file: RemoteFile, data_path: str | None = None) -> Path:
    """The first of: --data-path, the folder JAXATTN_DATA, the user's cache, a download (which fills the cache).

    Args:
        file: which.
        data_path: what --data-path says: a folder or the file.

    Returns:
        The path of a file with the expected checksum.

    Raises:
        UserError: the file is another one, cannot be read, or cannot be downloaded; it says what to do.
    """
    path = find([file.name], data_path)
    if path is None:
        return download(file)
    check(file, path)
    return path


def check(file: RemoteFile, path: Path, source: str | None = None) -> None:
    """Raises unless the file at `path` has the expected SHA-256."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    if digest != file.sha256:
        raise UserError(
            f"{source or path} is not {file.what}: SHA-256 is {digest}, expected {file.sha256}. "
            f"Delete or replace it{file.otherwise}."
        )


def download(file: RemoteFile) -> Path:
    """Downloads into the cache; an interrupted download goes on where it stopped.

    Args:
        file: which.

    Returns:
        The path in the cache.

    Raises:
        UserError: no network, or what came has another checksum (it is then not kept).
    """
    target = cache() / file.name
    partial = target.with_name(f"{target.name}.partial")
    try:
        have = partial.stat().st_size if partial.exists() else 0
        with _opened(file.url, have) as response:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab") as out:
                _lock(out)
                if target.exists():  # another process was quicker while this one waited for the lock
                    return target
                # A server that does not resume sends the whole file again.
                resumed = getattr(response, "status", 200) == 206 and out.seek(0, os.SEEK_END) == have
                if not resumed:
                    out.truncate(0)
                _copy(response, out, file.name, have if resumed else 0)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"could not download {file.name} ({reason}). {file.offline}") from error
    try:
        check(file, partial, file.url)
    except UserError:
        partial.unlink()
        with contextlib.suppress(OSError):
            target.parent.rmdir()  # only if there is nothing else in it
        raise
    partial.replace(target)  # atomic: a reader sees the whole file or none
    return target


@contextlib.contextmanager
def _opened(url: str, have: int) -> Iterator[Any]:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"}) if have else url
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        response = urllib.request.urlopen(url, timeout=30)  # nothing is left to resume: take it anew
    with response:
        yield response


def _lock(file: BinaryIO) -> None:
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _copy(response: Any, out: BinaryIO, name: str, done: int) -> None:
    headers = getattr(response, "headers", None) or {}
    left = headers.get("Content-Length")
    console = rich.console.Console(file=sys.stderr)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    if not console.is_terminal:
        print(f"downloading {name}", file=sys.stderr, flush=True)
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        total = None if left is None else done + int(left)
        task = bar.add_task(f"downloading {name}", total=total, completed=done)
        received = done
        while chunk := response.read(CHUNK):
            out.write(chunk)
            received += len(chunk)
            bar.advance(task, len(chunk))
    if total is not None and received < total:
        raise OSError(
            f"the connection closed after {received:,} of {total:,} bytes; the same command resumes"
        )
