import gzip
import json
import lzma

import pytest

from jaxattn_train.data.tables import Texts, read_table, split_by_hash, split_labels
from jaxattn_train.errors import UserError

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


def test_labels_that_look_the_same_are_one(tmp_path):
    assert (
        read_table(_write(tmp_path / "a.csv", "text,label\nx,\u00e9\ny,e\u0301\n"), **COLUMNS).labels
        == ["é"] * 2
    )


def test_texts_are_not_their_own_labels(tmp_path):
    path = _write(tmp_path / "a.csv", "text,label\nx,1\n")
    with pytest.raises(UserError, match="--label-column must be another column than the texts'; got 'text'"):
        read_table(path, text_column="text", label_column="text")


def test_texts_of_one_name_are_split_whatever_their_order():
    labels = ["a"] * 50 + ["b"] * 50
    _, held_out = split_by_hash(Texts([f"w{i}" for i in range(100)], labels, [""] * 100), 20)
    assert 5 < held_out.labels.count("b") < 15


def test_columns_of_0_and_1_are_labels(tmp_path):
    path = _write(tmp_path / "a.csv", "text,joy,anger\nx,1,0\ny,0,0\nz,1.0,True\n")
    options = {"text_column": "text", "label_column": None, "label_separator": ","}
    found = read_table(path, **options, label_columns=("joy", "anger"))
    assert found.labels == ["joy", "", "joy,anger"]
    _write(path, "text,joy,anger\nx,1,2\ny,,0\n")
    with pytest.raises(UserError) as raised:
        read_table(path, **options, label_columns=("joy", "anger"))
    assert str(raised.value).splitlines() == [
        f"{path}:2: 'anger' must be 0 or 1; got '2'.", f"{path}:3: 'joy' must be 0 or 1; got ''."
    ]  # fmt: skip
    with pytest.raises(UserError, match="--label-columns must be a column of"):
        read_table(path, **options, label_columns=("joy", "fear"))


LONG = "text,label\n" + "hi,1\n" * 5000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", "must end in .tsv, .csv, .jsonl"),
        ("a.csv", "\n", "holds no texts"),
        ("a.jsonl", "[" * 100_000, "{path}:1: not JSON (nested too deeply)."),
        (
            "a.tsv",
            "sentence\tlabel\nx\t1\n",
            "--text-column must be a column of {path}: 'sentence', 'label'; got 'text'.",
        ),
        (
            "a.csv",
            "text,sentiment\nx,1\n",
            "--label-column must be a column of {path}: 'text', 'sentiment'; got 'label'.",
        ),
        ("a.jsonl", '{"text": "x"}\n', "--label-column must be a column of {path}: 'text'; got 'label'."),
        ("a.tsv", "text\tlabel\nx\t1\ny\n", "{path}:3: 1 columns; the first line has 2."),
        ("a.csv", "text,label\nx,1,2\n", "{path}:2: 3 columns; the first line has 2."),
        ("a.csv", "text,label,id\nx,1\n", "{path}:2: 2 columns; the first line has 3."),
        ("a.csv", "text,text,label\nx,y,1\n", "{path}:1: 2 columns are named 'text'."),
        ("a.tsv", "text\tlabel\tlabel\nx\t0\t1\n", "{path}:1: 2 columns are named 'label'."),
        ("a.jsonl", '{"text": "x", "text": "y", "label": 1}\n', "{path}:1: 2 fields are named 'text'."),
        ("a.tsv", "text\tlabel\n", "holds no texts"),
        ("a.csv", "", "holds no texts"),
        # Labels
        ("a.csv", "text,label\nw1,pos\nw2,\nw3,neg\n", "{path}:3: the label is empty."),
        ("a.tsv", "text\tlabel\nw1\tpos\nw2\t \n", "{path}:3: the label is empty."),
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n\n{"text": "x", "label": ""}\n',
            "{path}:3: the label is empty.",
        ),
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n{"text": "x", "label": null}\n',
            "{path}:2: 'label' is missing.",
        ),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "x"}\n', "{path}:2: 'label' is missing."),
        ("a.jsonl", '{"text": "x", "label": NaN}\n', "{path}:1: 'label' is missing (nan)."),
        (
            "a.jsonl",
            '{"text": "x", "label": {"a": 1}}\n',
            "{path}:1: the label must be a string; got {{'a': 1}}.",
        ),
        (
            "a.jsonl",
            '{"text": "x", "label": ["a", "b"]}\n',
            "{path}:1: several labels are for --loss multilabel; got",
        ),
        (
            "a.jsonl",
            '{"text": "x", "label": "a\\ud83d"}\n',
            "{path}:1: the label must be Unicode text; it holds a lone",
        ),
        # Texts
        ("a.csv", "text,label\n ,pos\nw1,\n", "{path}:2: the text is empty.\n{path}:3: the label is empty."),
        ("a.jsonl", '{"text": ["a"], "label": 1}\n', "{path}:1: the text must be a string; got ['a']."),
        ("a.jsonl", '{"text": 5, "label": 1}\n', "{path}:1: the text must be a string; got 5."),
        ("a.jsonl", '{"text": null, "label": 1}\n', "{path}:1: 'text' is missing."),
        ("a.jsonl", '{"text": NaN, "label": 1}\n', "{path}:1: 'text' is missing (nan)."),
        (
            "a.jsonl",
            '{"text": "caf\\ud83d", "label": 1}\n',
            "{path}:1: the text must be Unicode text; it holds a lone",
        ),
        # Damage
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n{"text"',
            "{path}:2: not JSON (Expecting ':' delimiter, column 8).",
        ),
        ("a.jsonl", "[1]\n", "{path}:1: not a JSON object: '[1]'."),
        (
            "a.csv",
            LONG + '"He said "hi" to me",1\n',
            "{path}:5002: the quotes do not match (',' expected after '\"').",
        ),
        ("a.csv", LONG + '"a \\"b\\" c",1\n', "{path}:5002: the quotes do not match"),
        (
            "a.csv",
            'text,label\n"two\nlines",1\n"never\nclosed,1\n',
            "{path}:4: the quotes do not match (unexpected end",
        ),
    ],
)
def test_unusable_tables_are_named(tmp_path, name, content, message):
    path = _write(tmp_path / name, content)
    with pytest.raises(UserError) as raised:
        read_table(path, **COLUMNS)
    assert message.format(path=path) in str(raised.value)
    assert "None" not in str(raised.value)


def test_all_bad_rows_are_reported_at_once(tmp_path):
    rows = ["text,label", "a,1", "b", "c,", '"d "e" f",1', "g,1", *["h,"] * 12]
    path = _write(tmp_path / "a.csv", "\n".join(rows) + "\n")
    with pytest.raises(UserError) as raised:
        read_table(path, **COLUMNS)
    lines = str(raised.value).splitlines()
    assert [line.removeprefix(f"{path}:")[:2] for line in lines] == [
        "3:",
        "4:",
        "5:",
        *["7:", "8:", "9:"],
        *[f"{n}" for n in range(10, 14)],
        "an",
    ]
    assert lines[-1] == "and 5 more"


def test_equal_numbers_are_one_class_and_lists_are_several_labels(tmp_path):
    rows = [{"text": "w", "label": label} for label in (1, True, 1.0, "1", 0, False, 2.5)]
    path = _write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_table(path, **COLUMNS).labels == ["1", "1", "1", "1", "0", "0", "2.5"]
    rows = [{"text": "w", "label": label} for label in (["joy", "love"], [], "anger, joy", ["a b", 1])]
    path = _write(tmp_path / "b.jsonl", "\n".join(map(json.dumps, rows)))
    found = read_table(path, **COLUMNS, label_separator=",").labels
    assert [split_labels(label, ",") for label in found] == [
        ["joy", "love"],
        [],
        ["anger", "joy"],
        ["a b", "1"],
    ]
    with pytest.raises(
        UserError, match=r"b\.jsonl:4: the label 'a b' holds the separator ' '; see --label-separator"
    ):
        read_table(path, **COLUMNS, label_separator=" ")


@pytest.mark.parametrize(
    ("name", "separator", "said"),
    [
        ("a.csv", ";", "semicolons"),
        ("a.csv", "\t", "tabs"),
        ("a.tsv", ",", "commas"),
        ("a.tsv", "|", "vertical bars"),
    ],
)
def test_another_separator_is_guessed_and_said(tmp_path, capsys, name, separator, said):
    rows = [["label", "text"], ["1", '"a ""b"'], ["0", "c d"]]
    path = _write(tmp_path / name, "".join(separator.join(row) + "\n" for row in rows))
    assert read_table(path, **COLUMNS) == Texts(['a "b', "c d"], ["1", "0"], ["0", "1"])
    assert capsys.readouterr().err == f"note: {path} is read as separated by {said}.\n"


def test_texts_know_their_lines(tmp_path):
    path = _write(tmp_path / "a.csv", 'text,label\n\n"two\nlines",1\nb,0\n')
    assert read_table(path, **COLUMNS).places == [f"{path}:3", f"{path}:5"]


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
    (tmp_path / "c.csv").write_bytes(b"text,label\n" + b"hi,1\n" * 9000 + b"\x93quoted\x94,1\n")
    with pytest.raises(UserError, match=r"c\.csv:9002: not UTF-8 text \(byte 45011\)"):
        read_table(tmp_path / "c.csv", **COLUMNS)
