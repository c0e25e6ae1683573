"""Finds the released files of the Long Range Arena, which are one archive of 7.7 GB that is not fetched by itself."""

from collections.abc import Sequence
from pathlib import Path

from train.data.download import find
from train.errors import UserError

RELEASE_URL = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
# Where the files lie below a data folder: as unpacked, and as they are commonly sorted.
RETRIEVAL = tuple(
    f"{folder}new_aan_pairs.train.tsv"
    for folder in ("aan/", "lra_release/lra_release/tsv_data/", "lra_release/tsv_data/", "tsv_data/", "")
)
PATHFINDER = tuple(
    f"{folder}pathfinder32/curv_contour_length_14"
    for folder in ("", "pathfinder/", "lra_release/lra_release/", "lra_release/")
)


def find_released(names: Sequence[str], data_path: str | None, what: str) -> Path:
    """The first of `names` below --data-path, the folder JAXATTN_DATA or the user's cache.

    Args:
        names: paths below a data folder.
        data_path: what --data-path says.
        what: the task, for the message.

    Returns:
        An existing file or folder.

    Raises:
        UserError: there is none; it says what to do.
    """
    path = find(names, data_path)
    if path is None:
        raise UserError(
            f"{what} needs {Path(names[0]).name} of the Long Range Arena's release, and none was found. Unpack "
            f"{RELEASE_URL} (7.7 GB, which is not downloaded by itself) and set JAXATTN_DATA to the folder that "
            "holds lra_release, or give --data-path with the folder that holds the file."
        )
    return path
