"""A tiny encoder and texts to fine-tune it on."""

import pytest

from tests.train.tiny_encoder import save_tiny_encoder, write_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The encoder, and texts of one label."""
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "tiny").mkdir()
    save_tiny_encoder(folder / "tiny")
    write_texts(folder / "train.csv", 120, 0)
    write_texts(folder / "test.csv", 37, 1)
    return folder
