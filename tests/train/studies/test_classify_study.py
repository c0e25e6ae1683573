import json

import pytest

from train.errors import UserError
from train.studies import classify as classify_study


def _summary(attention, accuracy, **changes):
    numbers = {"mean": sum(accuracy) / len(accuracy), "spread": 0.01, "per_seed": accuracy}
    return {
        "config": {
            "model": {"attention": attention, "num_layers": 2, "num_heads": 4, "features": 64},
            "optimizer": {"batch_size": 32},
            "data": {
                "max_length": 64,
                "max_branching": 8 if attention == "tree" else None,
                "data_path": None,
            },
        },
        "seeds": [0, 1, 2],
        "steps": 10,
        "parameters": 5,
        "data": {"name": "toy", "examples": {"test": 1000}, "trees": attention == "tree", "notes": []},
        "measured_on": "test",
        "accuracy": numbers,
        "loss": numbers,
        "val_accuracy": numbers,
        "last_val_accuracy": numbers,
        "best_step": 10,
        "compiled_shapes": 3,
        "seconds": 9.0,
        "seconds_per_step": 0.5,
        "tokens_per_second": 100.0,
        "device": {"kind": "cpu"},
        "versions": {"jax": "0"},
    } | changes


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Runs that finish at once; and what was asked of them."""
    asked = []
    results = {"softmax": [0.80, 0.81, 0.82], "tree": [0.81, 0.84, 0.84]}

    class Done:
        returncode = 0

    def run(command):
        flags = dict(zip(command[4::2], command[5::2], strict=False))
        asked.append(flags)
        folder = tmp_path / "runs"
        path = folder / flags["--out"].rpartition("/")[2]
        path.mkdir(parents=True)
        (path / "summary.json").write_text(
            json.dumps(_summary(flags["--attention"], results[flags["--attention"]]))
        )
        return Done()

    monkeypatch.setattr("subprocess.run", run)
    return asked, ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "study.json")]


def test_a_study_compares_seed_by_seed_and_goes_on_where_it_was(runs, tmp_path, capsys):
    asked, flags = runs
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results:classify-sst2-quick -->\nold\n<!-- /results -->\nafter\n")
    words = ["--preset", "sst2-quick", *flags, "--variants", "softmax", "tree --max-branching 8"]
    assert classify_study.main([*words, "--tables", str(page)]) == 0
    assert [flags["--attention"] for flags in asked] == ["softmax", "tree"]
    assert asked[1]["--max-branching"] == "8"
    assert asked[0]["--seeds"] == "3"
    record = json.loads((tmp_path / "study.json").read_text())
    difference = record["rows"][1]["difference"]
    assert difference["to"] == "softmax"
    assert difference["per_seed"] == pytest.approx([0.01, 0.03, 0.02])
    assert "| `tree --max-branching 8` | 83.00 ± 1.00 | +2.00 ± 1.00 |" in page.read_text()
    assert page.read_text().startswith("before")
    assert page.read_text().endswith("after\n")
    assert classify_study.main(words) == 0
    assert len(asked) == 2


def test_runs_that_differ_in_more_than_attention_are_not_compared(tmp_path):
    folders = {}
    for attention, steps in (("softmax", 10), ("tree", 20)):
        folders[attention] = tmp_path / attention
        folders[attention].mkdir()
        summary = _summary(attention, [0.5], steps=steps)
        (folders[attention] / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match="differ in more than their attention: steps"):
        classify_study.make_study("sst2-study").collect(folders)


def test_what_trees_join_does_not_keep_runs_apart(tmp_path):
    """Notes on the data name what a tree joined: the data are the same."""
    folders = {}
    for attention, notes in (("softmax", ["cut: 3"]), ("tree", ["cut: 3", "joined: 2"])):
        folders[attention] = tmp_path / attention
        folders[attention].mkdir()
        summary = _summary(attention, [0.5])
        summary["data"]["notes"] = notes
        (folders[attention] / "summary.json").write_text(json.dumps(summary))
    rows = classify_study.make_study("sst2-study").collect(folders)["rows"]
    assert [row["notes"] for row in rows] == [["cut: 3"], ["cut: 3", "joined: 2"]]


def test_mistakes_show_before_anything_runs(runs):
    asked, flags = runs
    for variants, message in (
        (["softmax", "softmax --max-branching 8"], "--max-branching is for --attention tree"),
        (["softmax", "softmax"], "--variants must differ"),
    ):
        with pytest.raises(UserError, match=message):
            classify_study.main(["--variants", *variants, *flags])
    with pytest.raises(UserError, match="no finished run"):
        classify_study.main(["--collect", *flags])
    assert not asked
