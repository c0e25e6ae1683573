"""Studies: variants of a command side by side, on runs that finish at once."""

import json
import pathlib

import pytest

from jaxattn_train.errors import UserError
from jaxattn_train.studies import classify, gates, heads, recall

RESULTS = pathlib.Path(__file__).resolve().parents[3] / "benchmarks/results"
SCORES = ("accuracy", "loss", "val_accuracy", "last_val_accuracy", "f1", "weighted_f1", "val_f1")


def _summary(model, score, **changes):
    """What a run with these fields of its model leaves, which scored so for each seed."""
    numbers = {"mean": sum(score) / len(score), "spread": 0.01, "per_seed": score}
    sizes = {"num_layers": 2, "num_heads": 4, "features": 64, "encoder": "/x/minilm", "freeze_encoder": False}
    trees = model.get("attention") == "tree"
    return {
        "config": {
            "model": sizes | model,
            "optimizer": {"batch_size": 32, "lr": 5e-5, "head_lr": None},
            "evaluation": {"patience": None},
            "data": {"max_length": 64, "max_branching": 8 if trees else None, "data_path": None},
        },
        "data": {"name": "toy", "examples": {"test": 1000}, "trees": trees, "notes": []},
        **dict.fromkeys(SCORES, numbers),
        **{"seeds": [0, 1], "steps": 10, "parameters": 5000, "measured_on": "test", "best_step": 10},
        **{"compiled_shapes": 3, "seconds": 9.0, "seconds_per_step": 0.5, "tokens_per_second": 100.0},
        **{"device": {"kind": "cpu"}, "versions": {"jax": "0"}},
    } | changes


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Runs that finish at once: what was asked of them, and flags of a study with its own folder."""
    asked = []
    scores = {"softmax": [0.80, 0.82], "tree": [0.81, 0.85], "cls": [0.60, 0.62], "inceptive": [0.63, 0.64]}

    class Done:
        returncode = 0

    def run(command):
        flags = {word: command[i + 1] for i, word in enumerate(command[:-1]) if word.startswith("--")}
        asked.append(flags)
        folder = tmp_path / "runs" / flags["--out"].rpartition("/")[2]
        folder.mkdir(parents=True)
        if "--attention" in flags:
            model = {"attention": flags["--attention"]}
        else:
            model = {"head": flags.get("--head", "inceptive")}
        summary = _summary(model, scores[next(iter(model.values()))])
        (folder / "summary.json").write_text(json.dumps(summary))
        return Done()

    monkeypatch.setattr("subprocess.run", run)
    words = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "study.json"), "--seeds", "2"]
    return asked, words


def _page(tmp_path, name):
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- results:{name} -->\nold\n<!-- /results -->\nafter\n")
    return page


def test_a_study_compares_seed_by_seed_and_continues(runs, tmp_path):
    asked, own = runs
    page = _page(tmp_path, "classify-sst2-quick")
    words = ["--preset", "sst2-quick", *own, "--variants", "softmax", "tree --max-branching 8"]
    assert classify.main([*words, "--tables", str(page)]) == 0
    assert [flags["--attention"] for flags in asked] == ["softmax", "tree"]
    assert asked[1]["--max-branching"] == "8"
    assert asked[0]["--seeds"] == "2"
    record = json.loads((tmp_path / "study.json").read_text())
    difference = record["rows"][1]["difference"]
    assert difference["to"] == "softmax"
    assert difference["per_seed"] == pytest.approx([0.01, 0.03])
    assert "| `tree --max-branching 8` | 83.00 ± 1.00 | +2.00 ± 1.41 |" in page.read_text()
    assert page.read_text().startswith("before")
    assert page.read_text().endswith("after\n")
    assert classify.main(words) == 0
    assert len(asked) == 2, "finished runs are kept"


def test_variants_may_be_flags_of_their_own(runs, tmp_path):
    asked, own = runs
    page = _page(tmp_path, "finetune-irony")
    words = ["--variants", "cls", "--kernels 2 3", "--encoder", "/x/minilm", "--encoder-name", "MiniLM", *own]
    assert heads.main([*words, "--tables", str(page), "--", "--epochs", "2"]) == 0
    assert [flags.get("--head") for flags in asked] == ["cls", None]
    assert asked[0]["--epochs"] == "2"
    record = json.loads((tmp_path / "study.json").read_text())
    assert record["rows"][1]["difference"]["per_seed"] == pytest.approx([0.03, 0.02])
    assert "/x/minilm" not in json.dumps(record)
    assert "| `--kernels 2 3` | 63.50 ± 1.00 | +2.50 ± 0.71 |" in page.read_text()
    with pytest.raises(UserError, match="--variants must be of cls, mean"):
        heads.main(["--variants", "clz"])


@pytest.mark.parametrize(
    ("study", "variants", "changes", "message"),
    [
        (classify, {"softmax": "attention", "tree": "attention"}, {"steps": 20}, "their attention: steps"),
        (heads, {"cls": "head", "mean": "head"}, {"seeds": [3, 4]}, "their head: seeds"),
    ],
)
def test_runs_that_differ_in_more_are_not_compared(runs, tmp_path, study, variants, changes, message):
    for number, (name, field) in enumerate(variants.items()):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        summary = _summary({field: name}, [0.5, 0.5], **(changes if number else {}))
        (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=f"differ in more than {message}"):
        study.main(["--variants", *variants, *runs[1], "--collect"])


def test_notes_on_trees_do_not_keep_runs_apart(runs, tmp_path):
    for attention, notes in (("softmax", ["cut: 3"]), ("tree", ["cut: 3", "joined: 2"])):
        folder = tmp_path / "runs" / attention
        folder.mkdir(parents=True)
        summary = _summary({"attention": attention}, [0.5])
        summary["data"]["notes"] = notes
        (folder / "summary.json").write_text(json.dumps(summary))
    assert classify.main(["--variants", "softmax", "tree", *runs[1], "--collect"]) == 0
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [row["notes"] for row in rows] == [["cut: 3"], ["cut: 3", "joined: 2"]]


def test_rows_of_the_record_stand_for_runs_that_are_gone(runs, tmp_path):
    """And the differences are to the first variant, wherever it comes from."""
    asked, own = runs
    assert classify.main([*own, "--variants", "softmax", "tree --max-branching 8"]) == 0
    (tmp_path / "runs" / "softmax" / "summary.json").unlink()
    assert classify.main([*own, "--variants", "softmax", "tree --max-branching 8", "--collect"]) == 0
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["softmax", "tree --max-branching 8"]
    assert rows[1]["difference"]["per_seed"] == pytest.approx([0.01, 0.03])
    record = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(record | {"seeds": [3, 4]}))
    with pytest.raises(UserError, match="differ in more than their attention: seeds"):
        classify.main([*own, "--variants", "softmax", "tree --max-branching 8", "--collect"])
    assert len(asked) == 2


def test_mistakes_show_before_anything_runs(runs):
    asked, flags = runs
    for variants, message in (
        (["softmax", "softmax --max-branching 8"], "--max-branching is for --attention tree"),
        (["softmax", "softmax"], "--variants must differ"),
    ):
        with pytest.raises(UserError, match=message):
            classify.main([*flags, "--variants", *variants])
    with pytest.raises(UserError, match="no finished run"):
        classify.main(["--collect", *flags])
    assert not asked


@pytest.mark.parametrize(
    ("study", "name"),
    [
        (gates, "charlm_gates_study"),
        (gates, "charlm_recency_study"),
        (recall, "mqar_study"),
        (classify, "classify_sst2_study"),
        (classify, "classify_imdb_study"),
        (heads, "finetune_irony"),
        (heads, "finetune_emotion"),
    ],
)
def test_the_documented_tables_are_those_of_the_committed_results(study, name):
    table = study.table(json.loads((RESULTS / f"{name}.json").read_text()))
    pages = [path.read_text() for path in (RESULTS.parents[1] / "docs").glob("*.md")]
    assert any(table in text for text in pages)
