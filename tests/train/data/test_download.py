import hashlib

import pytest

from jaxattn_train.data.download import RemoteFile, download
from jaxattn_train.data.files import obtain
from jaxattn_train.errors import UserError

DATA = bytes(range(256)) * 700
SHA256 = hashlib.sha256(DATA).hexdigest()


def _file(url):
    return RemoteFile("set/a.bin", url, SHA256, "the file", "Put it there.")


@pytest.fixture
def remote(server):
    server.content = DATA
    return _file(server.url)


def test_an_interrupted_download_resumes_where_it_stopped(remote, server, offline):
    server.most = 150_000
    with pytest.raises(
        UserError, match=r"could not download set/a\.bin .*; the same command resumes\)\. Put it"
    ):
        download(remote)
    kept = (offline / "set" / "a.bin.partial").read_bytes()
    assert 0 < len(kept) <= 150_000 and DATA.startswith(kept)
    server.most = len(DATA)
    for _ in range(2):
        assert obtain(remote).read_bytes() == DATA
    assert server.asked == [0, len(kept)]
    assert [path.name for path in (offline / "set").iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    ("before", "resumes"), [(b"something else", False), (b"something else", True), (DATA + b"more", True)]
)
def test_what_does_not_resume_is_downloaded_anew(before, resumes, remote, server, offline):
    (offline / "set").mkdir(parents=True)
    (offline / "set" / "a.bin.partial").write_bytes(before)
    server.resumes = resumes
    assert download(remote).read_bytes() == DATA


def test_wrong_content_is_not_kept(server, offline):
    server.content = b"other"
    with pytest.raises(UserError, match=f"is not the file: SHA256 .* expected sha256:{SHA256}"):
        obtain(_file(server.url))
    assert not list(offline.rglob("*.*"))


def test_no_network_says_what_to_do(offline):
    with pytest.raises(UserError, match=r"could not download set/a\.bin \(no network\)\. Put it there\."):
        obtain(_file("https://example.org/a.bin"))
    assert not list(offline.rglob("*.*"))


def test_another_file_is_refused(offline, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"other")
    with pytest.raises(
        UserError, match=r"a\.bin is not the file: SHA-256 is .*, expected .*Delete or replace it\."
    ):
        obtain(_file(""), str(tmp_path))
    with pytest.raises(
        UserError, match=r"--data-path .*nowhere does not exist; it should hold one of: set/a\.bin"
    ):
        obtain(_file(""), str(tmp_path / "nowhere"))
