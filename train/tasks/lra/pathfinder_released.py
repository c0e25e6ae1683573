"""Pathfinder as released with the Long Range Arena: `pathfinder32/curv_contour_length_14`, pictures as PNG files.

The folder holds `metadata/0.npy`, `1.npy`, ..., which despite their name are text in the release, one picture a
line: folder (`imgs/0`), file (`sample_0.png`), number, label, and the parameters it was drawn with. Empty
picture files occur and are left out, as the published pipeline does. No checksums are published: what is
checked is that every line names a picture of 32 × 32 pixels and a label 0 or 1.

The first 80 % of the pictures are for training, 10 % for validation, 10 % for test, in the order of the
metadata; the published pipeline takes the same shares in an order of its dataset builder's.
"""

import hashlib
from pathlib import Path

import numpy as np

from train.data.generators.array_file import read_arrays, write_arrays
from train.data.generators.pathfinder import LENGTH, picture_split
from train.data.generators.pathfinder_paths import SIZE
from train.data.generators.shards import Arrays
from train.errors import UserError
from train.tasks.lra.split import Splits, split_up


def load_released(root: Path, *, cache: Path) -> Splits:
    """Reads the released pictures; the second time, from one file in the cache.

    Args:
        root: the folder that holds `metadata` and `imgs`.
        cache: folder for that file.

    Returns:
        The three parts; the facts say how many files were empty.

    Raises:
        UserError: a file is missing or is not what it should be.
    """
    lines = _metadata(root)
    listed = hashlib.sha256("\n".join(" ".join(fields[:4]) for fields in lines).encode()).hexdigest()
    about = {"task": "pathfinder released", "metadata": listed, "folder": str(root.resolve())}
    path = cache / f"pathfinder-released-{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.bin"
    stored = read_arrays(path, about=about)
    if stored is None:
        stored = _pictures(root, lines)
        write_arrays(path, stored, about=about)
    whole = picture_split(stored["images"], stored["labels"])
    tenth = len(whole) // 10
    facts = {"source": str(root), "empty_files": len(lines) - len(whole)}
    return split_up(whole, (len(whole) - 2 * tenth, tenth), facts)


def _metadata(root: Path) -> list[list[str]]:
    files = [file for file in (root / "metadata").glob("*.npy") if file.stem.isdigit()]
    if not files:
        raise UserError(
            f"{root} has no metadata/0.npy; the folder of the released Pathfinder holds metadata and imgs."
        )
    lines: list[list[str]] = []
    for file in sorted(files, key=lambda file: int(file.stem)):
        try:
            content = file.read_bytes()
            if content.startswith(b"\x93NUMPY"):  # as the generator itself writes it
                rows = [[str(field) for field in row] for row in np.load(file, allow_pickle=False)]
            else:
                rows = [line.split() for line in content.decode("utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file}: {error}.") from error
        for number, fields in enumerate(rows, 1):
            if len(fields) < 4 or fields[3] not in ("0", "1"):
                raise UserError(
                    f"{file}, line {number}: expected folder, file, number and a label 0 or 1; got {fields}."
                )
        lines += rows
    return lines


def _pictures(root: Path, lines: list[list[str]]) -> Arrays:
    from PIL import Image, UnidentifiedImageError

    images, labels = [], []
    for fields in lines:
        file = root / fields[0] / fields[1]
        try:
            if file.stat().st_size == 0:
                continue
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("L"))
        except (OSError, UnidentifiedImageError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read the picture {file}: {reason}.") from error
        if pixels.shape != (SIZE, SIZE):
            raise UserError(
                f"{file} should have {SIZE} × {SIZE} pixels; it has {pixels.shape[1]} × {pixels.shape[0]}."
            )
        images.append(pixels.reshape(LENGTH))
        labels.append(int(fields[3]))
    if len(images) < 10:
        raise UserError(f"{root} holds {len(images)} pictures; three parts need at least 10.")
    return {"images": np.array(images, np.uint8), "labels": np.array(labels, np.uint8)}
