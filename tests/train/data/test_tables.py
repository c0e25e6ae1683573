import gzip
import lzma

import pytest

from train.data.tables import Texts, read_table
from train.errors import UserError

COLUMNS = {"text_column": "text", "label_column": "label"}


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
    with pytest.raises(UserError, match=r"b\.tsv:2: not UTF-8 text \(byte 11\)"):
        read_table(tmp_path / "b.tsv", **COLUMNS)
