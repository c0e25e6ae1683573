"""Pathfinder as released with the Long Range Arena: `pathfinder32/curv_contour_length_14`, pictures as PNG files.

The folder holds `metadata/0.npy`, `1.npy`, ..., which despite their name are text in the release, one picture a
line: folder (`imgs/0`), file (`sample_0.png`), number, label, and the parameters it was drawn with. Empty picture
files occur and are skipped, as in the published pipeline. No checksums are published, so every line is checked to
name a picture of 32 × 32 pixels and a label 0 or 1.

The first 80 % of the pictures are for training, 10 % for validation, 10 % for test, in the order of the metadata;
the published pipeline takes the same shares in the order of its dataset builder.
"""

import hashlib
from pathlib import Path

import numpy as np

from jaxattn_train.data.files import find, readable
from jaxattn_train.data.generators.array_file import Arrays, stored_or_made
from jaxattn_train.data.generators.pathfinder import LENGTH, pictures
from jaxattn_train.data.generators.pathfinder_paths import SIZE
from jaxattn_train.data.sequences import Splits, split_up
from jaxattn_train.errors import UserError

FOLDERS = ("", "pathfinder/", "lra_release/lra_release/", "lra_release/")


def load_released(data_path: str, *, cache: Path) -> Splits:
    """Reads the released pictures; the second time, from one file in the cache.

    Args:
        data_path: value of --data-path: the folder that holds `metadata` and `imgs`, or a data folder.
        cache: folder for that file.

    Returns:
        The three parts; the facts say how many files were empty.

    Raises:
        UserError: a file is missing or malformed.
    """
    root = find([f"{x}pathfinder32/curv_contour_length_14" for x in FOLDERS], data_path, inside="metadata")
    assert root is not None
    lines = _metadata(root)
    listed = hashlib.sha256("\n".join(" ".join(fields[:4]) for fields in lines).encode()).hexdigest()
    about = {"task": "pathfinder released", "metadata": listed, "folder": str(root.resolve())}
    path = cache / f"pathfinder-released-{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.npz"
    stored = stored_or_made(path, about, lambda: _pictures(root, lines))
    whole = pictures(stored["images"], stored["labels"])
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
        with readable(file):
            content = file.read_bytes()
            if content.startswith(b"\x93NUMPY"):  # as the generator itself writes it
                rows = [[str(field) for field in row] for row in np.load(file, allow_pickle=False)]
            else:
                rows = [line.split() for line in content.decode("utf-8").splitlines() if line.strip()]
        for number, fields in enumerate(rows, 1):
            if len(fields) < 4 or fields[3] not in ("0", "1"):
                raise UserError(
                    f"{file}:{number}: expected folder, file, number and a label 0 or 1; got {fields}."
                )
        lines += rows
    return lines


def _pictures(root: Path, lines: list[list[str]]) -> Arrays:
    from PIL import Image

    images, labels = [], []
    for fields in lines:
        file = root / fields[0] / fields[1]
        with readable(file):
            if file.stat().st_size == 0:
                continue
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("L"))
        if pixels.shape != (SIZE, SIZE):
            raise UserError(
                f"{file} should have {SIZE} × {SIZE} pixels; it has {pixels.shape[1]} × {pixels.shape[0]}."
            )
        images.append(pixels.reshape(LENGTH))
        labels.append(int(fields[3]))
    if len(images) < 10:
        raise UserError(f"{root} holds {len(images)} pictures; three parts need at least 10.")
    return {"images": np.array(images, np.uint8), "labels": np.array(labels, np.uint8)}
