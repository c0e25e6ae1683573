"""Image of the Long Range Arena: CIFAR-10 in grey, one token a pixel, row by row.

Grey is what the published pipeline computes: 0.2989 red + 0.5870 green + 0.1140 blue (ITU-R 601) of values in
[0, 1], times 255.5, rounded down; here in integers, since binary fractions could fall on either side of a whole
number. A token's id is its grey value; there is no padding.

The original files are read: five training batches, whose last 5,000 pictures are held out for validation, and the
test batch. The published pipeline holds out as many, in the order of its dataset builder.
"""

import hashlib
from pathlib import Path

import numpy as np

from jaxattn_train.data.download import RemoteFile, download
from jaxattn_train.data.files import check, find, readable, tar_members
from jaxattn_train.data.generators.pathfinder import pictures
from jaxattn_train.data.sequences import Splits, split_up
from jaxattn_train.errors import UserError

LENGTH = 32 * 32
PICTURES = 10_000  # in a batch
_RECORD = 1 + 3 * LENGTH  # label, red, green, blue
FOLDER = "cifar-10-batches-bin"
CIFAR10 = RemoteFile(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    # Its home publishes the MD5 c32a1d4ab5d03f1284b67883e8d87530; others the SHA-256 of the same 170,052,171 bytes.
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
        data_path: value of --data-path: the archive, the folder of batches, or a folder that holds one of them.

    Returns:
        The three parts, 45,000, 5,000 and 10,000 pictures.

    Raises:
        UserError: nothing is found and nothing can be downloaded, or a file is not the expected one.
    """
    path = find([FOLDER, CIFAR10.name], data_path, inside="test_batch.bin") or download(CIFAR10)
    if path.is_dir():
        with readable(path):
            batches = {name: (path / name).read_bytes() for name in BATCHES}
    else:
        check(CIFAR10, path)
        members = ((Path(name).name, content) for name, content in tar_members(path))
        batches = {name: content for name, content in members if name in BATCHES}
    for name, sha256 in BATCHES.items():
        content = batches.get(name, b"")
        digest = hashlib.sha256(content).hexdigest()
        if digest != sha256:
            raise UserError(
                f"{name} in {path} is not that of CIFAR-10: {len(content):,} bytes with SHA-256 {digest}; expected "
                f"{PICTURES * _RECORD:,} with {sha256}. Delete or replace it."
            )
    records = np.frombuffer(b"".join(batches[name] for name in BATCHES), np.uint8).reshape(-1, _RECORD)
    whole = pictures(to_grey(records[:, 1:].reshape(-1, 3, LENGTH)), records[:, 0])
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
    for start in range(0, len(colours), 1000):  # all pictures at once would take 1 GB as integers
        red, green, blue = colours[start : start + 1000].astype(np.int64).transpose(1, 0, 2)
        # ⌊(0.2989 r + 0.5870 g + 0.1140 b) / 255 · 255.5⌋
        grey[start : start + 1000] = (2989 * red + 5870 * green + 1140 * blue) * 511 // 5_100_000
    return grey
