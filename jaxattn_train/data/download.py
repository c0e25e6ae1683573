"""Downloads into the user's cache: checked by SHA-256, resumed, atomic."""

import contextlib
import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any, BinaryIO

from jaxattn_train.errors import UserError

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
    """What the user can do with another file, besides replacing it: ", or ..."."""


def cache() -> Path:
    """The folder that downloads go to."""
    import pooch  # takes half a second, which --help should not

    return Path(pooch.os_cache("jaxattn"))


def download(file: RemoteFile) -> Path:
    """Downloads into the cache; an interrupted download resumes where it stopped.

    `pooch` fetches, checks and moves the file into place. It neither resumes nor keeps two processes from fetching
    the same file, so the bytes that came are kept beside the target, in a `.partial` file with a lock.

    Args:
        file: which.

    Returns:
        The path in the cache.

    Raises:
        UserError: no network, or what came has another checksum (it is then not kept).
    """
    target = cache() / file.name
    resume = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f"{target.name}.partial").open("ab") as partial:
            _lock(partial)
            try:
                _retrieve(file, target, partial)
                Path(partial.name).unlink(missing_ok=True)
            finally:
                if partial.seek(0, os.SEEK_END):
                    resume = "; the same command resumes"
                else:
                    Path(partial.name).unlink(missing_ok=True)
    except ValueError as error:
        raise UserError(f"{file.url} is not {file.what}: {error}") from error
    except OSError as error:  # those of requests too
        raise UserError(f"could not download {file.name} ({error}{resume}). {file.offline}") from error
    return target


def _retrieve(file: RemoteFile, target: Path, partial: BinaryIO) -> None:
    import pooch
    import requests

    done = partial.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=CHUNK, headers=headers)

    def append(url: str, output: str, _: Any) -> None:
        fetch(url, partial, None)
        shutil.copyfile(partial.name, output)

    try:
        pooch.retrieve(file.url, f"sha256:{file.sha256}", target.name, target.parent, downloader=append)
    except (ValueError, requests.HTTPError) as error:
        if isinstance(error, requests.HTTPError) and getattr(error.response, "status_code", None) != 416:
            raise
        partial.truncate(0)
        if not done:
            raise
        _retrieve(file, target, partial)  # the server does not resume, or what was here is of something else


def _lock(file: BinaryIO) -> None:
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
