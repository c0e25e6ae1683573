import hashlib

import numpy as np
import pytest

from jaxattn_train.errors import UserError
from jaxattn_train.tasks.charlm import corpora
from jaxattn_train.tasks.charlm.config import DataConfig
from jaxattn_train.tasks.charlm.corpora import decode, encode, load_corpus

SHAKESPEARE = DataConfig(corpus="tinyshakespeare")


@pytest.fixture
def small_shakespeare(monkeypatch, offline):
    """Stands in for the real file: its checksum is the expected one."""
    data = b"First Citizen: Before we proceed any further, hear me speak. " * 20
    monkeypatch.setattr(corpora, "TINYSHAKESPEARE_SHA256", hashlib.sha256(data).hexdigest())
    return data


def _file_config(tmp_path, data):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    return DataConfig(text_file=str(path))


def test_reference_needs_nothing(offline):
    corpus = load_corpus(DataConfig(), context_length=128)
    assert len(corpus.train) > 300_000
    assert len(corpus.validation) == (len(corpus.train) + len(corpus.validation)) // 10
    assert corpus.train.dtype == np.int32
    assert corpus.vocabulary == "".join(sorted(set(corpus.vocabulary)))


def test_encode_and_decode_are_inverse():
    assert decode(encode("banana", "abn"), "abn") == "banana"
    with pytest.raises(UserError, match="'x', 'ä'"):
        encode("xbaä", "abn")


def test_validation_is_the_last_tenth(tmp_path):
    corpus = load_corpus(_file_config(tmp_path, b"a" * 90 + b"b" * 10), context_length=4)
    assert decode(corpus.train, corpus.vocabulary) == "a" * 90
    assert decode(corpus.validation, corpus.vocabulary) == "b" * 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"short", "too short: 5 characters"),
        (b"a" * 500 + b"\xff", "not UTF-8 text (byte 500)"),
    ],
)
def test_unusable_files_are_named(tmp_path, data, message):
    with pytest.raises(UserError) as raised:
        load_corpus(_file_config(tmp_path, data), context_length=8)
    assert message in str(raised.value)
    assert "text.txt" in str(raised.value)


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_corpus(DataConfig(text_file=str(tmp_path)), context_length=8)


def test_data_path_without_tinyshakespeare_is_refused(tmp_path):
    with pytest.raises(UserError, match="--text-file"):
        load_corpus(DataConfig(data_path=str(tmp_path)), context_length=8)


def test_tinyshakespeare_from_path_folder_or_environment(small_shakespeare, monkeypatch, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "tinyshakespeare.txt").write_bytes(small_shakespeare)
    for path in (folder, folder / "tinyshakespeare.txt"):
        given = DataConfig(corpus="tinyshakespeare", data_path=str(path))
        assert load_corpus(given, context_length=8).name == "tinyshakespeare"
    monkeypatch.setenv("JAXATTN_DATA", str(folder))
    assert len(load_corpus(SHAKESPEARE, context_length=8).train) > 0


def test_tinyshakespeare_is_downloaded_once(small_shakespeare, server, monkeypatch, offline):
    monkeypatch.setattr(corpora, "TINYSHAKESPEARE_URL", server.url)
    server.content = small_shakespeare
    first, second = (load_corpus(SHAKESPEARE, context_length=8) for _ in range(2))
    assert len(server.asked) == 1
    assert (first.train == second.train).all()
    assert [p.name for p in offline.iterdir()] == ["tinyshakespeare.txt"]


def test_no_network_names_the_three_ways(small_shakespeare):
    with pytest.raises(UserError) as raised:
        load_corpus(SHAKESPEARE, context_length=8)
    for way in ("--corpus reference", "JAXATTN_DATA", "--data-path", "--text-file"):
        assert way in str(raised.value)
