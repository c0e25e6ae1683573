"""Image of the Long Range Arena: CIFAR-10 in grey, one token a pixel, row by row.

Grey is what the published pipeline computes: 0.2989 red + 0.5870 green + 0.1140 blue (ITU-R 601) of values in
[0, 1], times 255.5, rounded down; here in integers, as binary fractions could fall on either side of a whole
number. The id of a token is the grey value; there is no padding.

The original files are read: five batches to train on, of which the last 5,000 pictures are kept for validation,
and the test batch. The published pipeline keeps as many, in an order of its dataset builder's.
"""

import hashlib
import tarfile
from pathlib import Path

import numpy as np

from train.data.download import RemoteFile, check, download, find
from train.data.generators.pathfinder import picture_split
from train.errors import UserError
from train.tasks.lra.split import Splits, split_up

LENGTH = 32 * 32
VOCABULARY_SIZE = 256
PICTURES = 10_000  # of a batch
_RECORD = 1 + 3 * LENGTH  # label, red, green, blue
FOLDER = "cifar-10-batches-bin"
CIFAR10 = RemoteFile(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    # The home publishes the MD5, c32a1d4ab5d03f1284b67883e8d87530; others the SHA-256 of the same 170,052,171 bytes.
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "the binary version of CIFAR-10",
    f"Without a network: put cifar-10-binary.tar.gz, or the folder {FOLDER} that it unpacks to, into a folder, and "
    "set JAXATTN_DATA to it or give --data-path.",
)
BATCHES = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


def load_image(data_path: str | None = None) -> Splits:
    """Reads CIFAR-10: from --data-path, JAXATTN_DATA, the cache or a download.

    Args:
        data_path: what --data-path says: the archive, the folder of batches, or a folder that holds one of them.

    Returns:
        The three parts, 45,000, 5,000 and 10,000 pictures.

    Raises:
        UserError: nothing is found and nothing can be downloaded, or a file is another one.
    """
    if data_path is not None and (Path(data_path) / "test_batch.bin").is_file():
        path: Path | None = Path(data_path)
    else:
        path = find([FOLDER, CIFAR10.name], data_path)
    if path is None:
        path = download(CIFAR10)
    if path.is_dir():
        batches = [_read(path / name) for name in BATCHES]
    else:
        check(CIFAR10, path)
        batches = _unpack(path)
    for name, content in zip(BATCHES, batches, strict=True):
        _check(path, name, content)
    records = np.frombuffer(b"".join(batches), np.uint8).reshape(-1, _RECORD)
    whole = picture_split(to_grey(records[:, 1:].reshape(-1, 3, LENGTH)), records[:, 0])
    training = (len(BATCHES) - 1) * PICTURES
    return split_up(whole, (training * 9 // 10, training // 10), {"source": "CIFAR-10"})


def to_grey(colours: np.ndarray) -> np.ndarray:
    """Grey values of pictures.

    Args:
        colours: uint8 (pictures, 3, pixels): red, green, blue.

    Returns:
        uint8 (pictures, pixels).

    Examples:
        >>> to_grey(np.array([[[255, 10], [255, 20], [255, 30]]], np.uint8)).tolist()
        [[255, 18]]
    """
    grey = np.empty((len(colours), colours.shape[2]), np.uint8)
    for start in range(0, len(colours), 1000):  # 32-bit integers of all pictures at once would take 1 GB
        red, green, blue = colours[start : start + 1000].astype(np.int64).transpose(1, 0, 2)
        # ⌊(0.2989 r + 0.5870 g + 0.1140 b) / 255 · 255.5⌋
        grey[start : start + 1000] = (2989 * red + 5870 * green + 1140 * blue) * 511 // 5_100_000
    return grey


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def _unpack(path: Path) -> list[bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in BATCHES and (file := archive.extractfile(member)) is not None:
                    found[name] = file.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"cannot unpack {path}: {error}.") from error
    if missing := set(BATCHES) - set(found):
        raise UserError(f"{path} does not hold {', '.join(sorted(missing))}.")
    return [found[name] for name in BATCHES]


def _check(path: Path, name: str, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != BATCHES[name]:
        raise UserError(
            f"{name} in {path} is not that of CIFAR-10: {len(content):,} bytes with SHA-256 {digest}; expected "
            f"{PICTURES * _RECORD:,} with {BATCHES[name]}. Delete or replace it."
        )
