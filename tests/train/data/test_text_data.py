import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import pathlib
import tarfile
import urllib.error

import numpy as np
import pytest

from train.data import text_classification
from train.data.download import RemoteFile, download, obtain
from train.data.sentences import join_short, paragraphs, sentence_lengths, sentence_starts
from train.data.tables import Texts, read_table, split_by_hash
from train.data.text_classification import LabelledTexts, load_files, load_imdb, load_sst2
from train.data.text_examples import text_examples
from train.data.words import PADDING, UNKNOWN, Vocabulary, plain, split_words
from train.errors import UserError

REAL = os.environ.get("JAXATTN_DATA")
COLUMNS = {"text_column": "text", "label_column": "label"}


# --- words and sentences ---


def test_words_keep_their_places_in_the_text():
    text = "It's GOOD; 'really' don't... 5.0!"
    words, starts = split_words(text)
    assert words == ["it's", "good", ";", "'", "really", "'", "don't", "...", "5", ".", "0", "!"]
    assert all(
        text[start : start + len(word)].lower() == word for word, start in zip(words, starts, strict=True)
    )


def test_line_breaks_of_markup_move_nothing():
    text = "One.<br /><br />Two<BR>three"
    assert len(plain(text)) == len(text)
    assert plain(text).index("Two") == text.index("Two")
    assert [plain(text)[a:b] for a, b in paragraphs(plain(text))] == ["One.", plain("Two<BR>three")]


def test_the_vocabulary_holds_the_most_frequent_words():
    vocabulary = Vocabulary.of([["b", "a", "c"], ["c", "b"], ["d"]], size=5)
    assert vocabulary.words == ("b", "c", "a")  # a before d: the alphabet decides
    assert len(vocabulary) == 5
    assert vocabulary.encode(["b", "d", "a"]).tolist() == [2, UNKNOWN, 4]
    assert PADDING not in vocabulary.encode(["b", "d", "a"])


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. No is fun. ", "See No. 1 and p. 5 of vol. 2. ", "No. ", "It is not."],
        ['"Really?" he asked. ', '"Yes!" ', "She left."],
        ["What?! ", "No way... maybe. ", "Well... ", "Fine… ", "Done"],
        ["He lives in the U.S. with J. R. Smith. ", "At 3 a.m. ", "It rained."],
        ["Cats, dogs etc. are pets. ", "Pets etc. ", "Are fine."],
        ["1. First things first. ", "It got a 7. ", "i liked it. ", "me too"],
        ["It was great.", "The end (really.) ", "See imdb.com now."],
        ["a movie . ", "not good ! ", "( bad ) ."],
        ["nothing ends here"],
    ],
)
def test_sentences_begin_where_a_reader_says(sentences):
    text = "".join(sentences)
    starts = [*sentence_starts(text), len(text)]
    assert [text[a:b] for a, b in itertools.pairwise(starts)] == sentences


def test_sentence_lengths_count_every_word_once():
    text = plain("Go on, do. Stop!<br /><br /> -- \n\n  No...<br />Yes")
    words, starts = split_words(text)
    assert sentence_lengths(text, starts) == [[5, 2], [2], [2, 1]]
    for kept in range(1, len(words)):
        nested = sentence_lengths(text, starts[:kept])
        assert sum(map(sum, nested)) == kept
        assert all(length > 0 for paragraph in nested for length in paragraph)


def test_many_tiny_sentences_are_joined_to_eight_words():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = [
            [int(n) for n in rng.integers(1, 6, rng.integers(1, 9))] for _ in range(rng.integers(3, 9))
        ]
        found = join_short(lengths)
        words = sum(map(sum, lengths))
        assert sum(map(sum, found)) == words
        assert sum(map(len, found)) <= max(8, words // 8)
        if found != lengths:
            assert min(n for paragraph in found for n in paragraph) >= 8
    for usual in ([[1] * 8], [[8, 9, 8], [10, 20, 12]], [[3]]):
        assert join_short(usual) == usual


# --- tables ---


def _write(path, content):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'text\tlabel\na "b\t1\nc d\t0\n'),
        ("a.csv", 'label,text\n1,"a ""b"\n0,c d\n'),
        ("a.jsonl", '{"text": "a \\"b", "label": 1}\n\n{"label": 0, "text": "c d"}\n'),
        ("a.jsonl.xz", '{"text": "a \\"b", "label": "1"}\n{"label": "0", "text": "c d"}'),
        ("a.tsv.gz", 'text\tlabel\r\na "b\t1\r\nc d\t0\r\n'),
    ],
)
def test_tables_of_every_kind_hold_the_same(tmp_path, name, content):
    found = read_table(_write(tmp_path / name, content), **COLUMNS)
    assert found == Texts(['a "b', "c d"], ["1", "0"], ["0", "1"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", "must end in .tsv, .csv, .jsonl"),
        ("a.tsv", "sentence\tlabel\nx\t1\n", "--text-column must be a column of"),
        ("a.csv", "text,sentiment\nx,1\n", "line 2 has no 'label', but 'text', 'sentiment'"),
        ("a.tsv", "text\tlabel\nx\t1\ny\n", "line 3: 1 columns; the first line has 2"),
        ("a.csv", "text,label\nx,1,2\n", "line 2: more columns"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 must be a JSON object"),
        ("a.jsonl", '{"text": "x"}\n', "--label-column must be a column of"),
        ("a.tsv", "text\tlabel\n", "holds no texts"),
    ],
)
def test_unusable_tables_are_named(tmp_path, name, content, message):
    with pytest.raises(UserError) as raised:
        read_table(_write(tmp_path / name, content), **COLUMNS)
    assert message in str(raised.value)
    assert name in str(raised.value)


def test_a_byte_order_mark_and_a_long_text_are_read(tmp_path):
    path = _write(tmp_path / "a.csv", "\ufefftext,label\n" + "word " * 40_000 + ",1\n")
    assert len(read_table(path, **COLUMNS).texts[0]) == 200_000


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.tsv: No such file"):
        read_table(tmp_path / "nowhere.tsv", **COLUMNS)
    (tmp_path / "a.tsv.xz").write_bytes(b"text")
    with pytest.raises(UserError, match="cannot read"):
        read_table(tmp_path / "a.tsv.xz", **COLUMNS)
    (tmp_path / "b.tsv").write_bytes(b"text\tlabel\n\xff\t1\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_table(tmp_path / "b.tsv", **COLUMNS)


# --- data sets ---


def test_the_validation_part_does_not_depend_on_the_order():
    texts = Texts([f"text {i}" for i in range(50)], ["0", "1"] * 25, [f"id{i}" for i in range(50)])
    turned = Texts(texts.texts[::-1], texts.labels[::-1], texts.ids[::-1])
    rest, kept = split_by_hash(texts, 10)
    assert len(kept.texts) == 10
    assert sorted(rest.ids + kept.ids) == sorted(texts.ids)
    assert set(split_by_hash(turned, 10)[1].ids) == set(kept.ids)
    assert all(
        text.removeprefix("text ") == name.removeprefix("id")
        for text, name in zip(kept.texts, kept.ids, strict=True)
    )


def test_a_share_is_kept_where_there_is_no_validation_file(tmp_path):
    path = _write(tmp_path / "a.csv", "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)))
    found = load_files(str(path), None, None, **COLUMNS, validation_share=0.25)
    assert (len(found.train.texts), len(found.validation.texts), found.test) == (30, 10, None)
    with pytest.raises(UserError, match=r"--validation-share 0\.01 of 40 texts leaves 0"):
        load_files(str(path), None, None, **COLUMNS, validation_share=0.01)


@pytest.fixture
def small_imdb(monkeypatch, tmp_path):
    """An archive like that of IMDB with six reviews a part; and its members."""
    members = {
        f"aclImdb/{part}/{label}/{i}_{4 if label == 'neg' else 9}.txt": f"{part} {label} {i}<br /><br />fin"
        for part in ("train", "test")
        for label in ("neg", "pos", "unsup")
        for i in (10, 2, 1)
    }
    path = tmp_path / "archive" / "aclImdb_v1.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(
        text_classification, "IMDB", dataclasses.replace(text_classification.IMDB, sha256=digest)
    )
    monkeypatch.setattr(text_classification, "IMDB_SIZE", 6)
    monkeypatch.setattr(text_classification, "IMDB_VALIDATION", 2)
    return path, members


def test_imdb_is_the_same_from_archive_folder_and_lines(small_imdb, tmp_path):
    path, members = small_imdb
    found = [load_imdb(str(path)), load_imdb(str(path.parent))]
    for name, text in members.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found += [load_imdb(str(tmp_path)), load_imdb(str(tmp_path / "aclImdb"))]
    for part in ("train", "test"):
        rows = [
            {"id": pathlib.Path(name).stem, "label": int("/pos/" in name), "text": text}
            for name, text in members.items()
            if f"/{part}/" in name and "unsup" not in name
        ]
        lines = tmp_path / "lines"
        lines.mkdir(exist_ok=True)
        _write(lines / f"imdb_{part}.jsonl.xz", "\n".join(map(json.dumps, rows)))
    found.append(load_imdb(str(tmp_path / "lines")))
    assert all(each == found[0] for each in found)
    assert (len(found[0].train.texts), len(found[0].validation.texts), len(found[0].test.texts)) == (4, 2, 6)
    assert found[0].test.labels == ["0"] * 3 + ["1"] * 3


def test_half_of_imdb_is_refused(small_imdb, monkeypatch):
    monkeypatch.setattr(text_classification, "IMDB_SIZE", 8)
    with pytest.raises(UserError, match="has 6 reviews to train on and 6 to test on; expected 8 and 8"):
        load_imdb(str(small_imdb[0]))


def test_another_file_is_not_taken_for_sst2(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nx\t1\n")
    with pytest.raises(UserError, match=r"train\.tsv is not the train part of SST-2: SHA-256"):
        load_sst2(str(tmp_path))
    with pytest.raises(
        UserError, match=r"--data-path .*nowhere does not exist; it should hold one of: sst2/train"
    ):
        load_sst2(str(tmp_path / "nowhere"))
    with pytest.raises(
        UserError, match=r"holds none of: imdb_train\.jsonl\.xz, aclImdb, aclImdb_v1\.tar\.gz"
    ):
        load_imdb(str(tmp_path))


@pytest.mark.skipif(not REAL, reason="JAXATTN_DATA is not set")
def test_the_real_data_sets():
    sst2 = load_sst2()
    assert [len(part.texts) for part in (sst2.train, sst2.validation, sst2.test)] == [60_614, 6_735, 872]
    imdb = load_imdb()
    assert [len(part.texts) for part in (imdb.train, imdb.validation, imdb.test)] == [22_500, 2_500, 25_000]
    assert imdb.validation.ids[:3] == ["10022_4", "10024_3", "10028_2"]
    data = text_examples(sst2, max_length=32, vocabulary_size=1000)
    assert data.train.lengths.max() == 32
    assert "cut at 32 words" in " ".join(data.notes)


# --- from texts to ids ---


def _labelled(train, validation=None, **kwargs):
    def part(rows):
        return Texts([t for t, _ in rows], [label for _, label in rows], [f"r{i}" for i in range(len(rows))])

    return LabelledTexts("toy", part(train), part(validation or train), None, **kwargs)


def test_texts_become_ids_and_nothing_is_cut_silently():
    texts = _labelled(
        [("good good film", "b"), ("bad", "a"), ("...\n", "a"), ("  ", "b")], class_names={"a": "A"}
    )
    data = text_examples(texts, max_length=2, vocabulary_size=4)
    assert data.classes == ("A", "b")
    assert data.vocab_size == 4
    assert data.train.padded(np.arange(4), 2).tokens.tolist() == [[2, 2], [UNKNOWN, 0], [3, 0], [UNKNOWN, 0]]
    assert data.train.labels.tolist() == [1, 0, 0, 1]
    notes = "\n".join(data.notes)
    assert "cut at 2 words (--max-length): 1 train, 1 validation" in notes
    assert "without a word, read as one unknown word: 1 train, 1 validation" in notes
    assert data.lengths is None
    with pytest.raises(ValueError, match="length must be at least 2"):
        data.train.padded(np.arange(4), 1)


def test_every_change_of_the_data_changes_its_hash():
    texts = _labelled([("good film", "1"), ("bad film", "0")])
    same, other, cut, trees = (
        text_examples(
            texts if i != 1 else _labelled([("good film", "0"), ("bad film", "1")]), **options
        ).sha256()
        for i, options in enumerate(
            [
                {"max_length": 4, "vocabulary_size": 9},
                {"max_length": 4, "vocabulary_size": 9},
                {"max_length": 1, "vocabulary_size": 9},
                {"max_length": 4, "vocabulary_size": 9, "max_branching": 2},
            ]
        )
    )
    assert len({same, other, cut, trees}) == 4
    assert same == text_examples(texts, max_length=4, vocabulary_size=9).sha256()


def test_unknown_and_single_labels_are_named():
    with pytest.raises(UserError, match="validation text r0 has the label '2', which no training text has"):
        text_examples(_labelled([("a", "0"), ("b", "1")], [("c", "2")]), max_length=4, vocabulary_size=9)
    with pytest.raises(UserError, match="must have at least 2 labels; all are '0'"):
        text_examples(_labelled([("a", "0")]), max_length=4, vocabulary_size=9)


# --- downloads ---


class _Answer(io.BytesIO):
    def __init__(self, data, status=200, length=None):
        super().__init__(data)
        self.status, self.headers = status, {} if length is None else {"Content-Length": str(length)}


@pytest.fixture
def remote(monkeypatch, tmp_path):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache"))
    monkeypatch.delenv("JAXATTN_DATA", raising=False)
    data = bytes(range(256)) * 700
    return data, RemoteFile(
        "set/a.bin",
        "https://example.org/a.bin",
        hashlib.sha256(data).hexdigest(),
        "the file",
        "Put it there.",
    )


def test_an_interrupted_download_goes_on_where_it_stopped(remote, monkeypatch, tmp_path):
    data, file = remote
    partial = tmp_path / "cache" / "set" / "a.bin.partial"
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: _Answer(data[:1000], length=len(data)))
    with pytest.raises(UserError, match="the connection closed after 1,000 of 179,200 bytes"):
        download(file)
    assert partial.read_bytes() == data[:1000]

    def rest(request, timeout):
        assert request.get_header("Range") == "bytes=1000-"
        return _Answer(data[1000:], status=206, length=len(data) - 1000)

    monkeypatch.setattr("urllib.request.urlopen", rest)
    assert obtain(file).read_bytes() == data
    assert not partial.exists()


def test_a_server_that_cannot_resume_sends_everything(remote, monkeypatch, tmp_path):
    data, file = remote
    partial = tmp_path / "cache" / "set" / "a.bin.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"something else")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: _Answer(data))
    assert download(file).read_bytes() == data

    def no_more(request, timeout):
        if not isinstance(request, str):
            raise urllib.error.HTTPError(file.url, 416, "Range Not Satisfiable", {}, None)
        return _Answer(data)

    (tmp_path / "cache" / "set" / "a.bin").unlink()
    partial.write_bytes(data + b"more")
    monkeypatch.setattr("urllib.request.urlopen", no_more)
    assert download(file).read_bytes() == data


def test_no_network_and_wrong_content_leave_nothing(remote, monkeypatch, tmp_path):
    _, file = remote

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=r"could not download set/a\.bin \(no network\)\. Put it there\."):
        obtain(file)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: _Answer(b"other"))
    with pytest.raises(UserError, match="is not the file: SHA-256"):
        obtain(file)
    assert not (tmp_path / "cache" / "set").exists()
