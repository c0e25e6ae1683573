import json
import shlex
import shutil

import numpy as np
import pytest

from jaxattn_train.cli.commands import main
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.classify.config import PRESETS, parse

TINY = shlex.split(
    "--dataset files --num-layers 1 --num-heads 2 --features 16 --batch-size 16 --max-length 32 --steps 32 "
    "--warmup 2 --lr 2e-2 --eval-every 8 --log-every 4"
)
EVERYTHING = shlex.split("--seeds 2 --dropout 0.1 --accumulate 2 --mesh fsdp=2")


def _texts(path, count, seed):
    """Texts with a telling word three times among others, of two kinds of lengths."""
    rng = np.random.default_rng(seed)
    lines = ["text,label"]
    for i in range(count):
        words = [f"w{n}" for n in rng.integers(0, 20, rng.integers(2, 12) + 12 * (i % 2))]
        for _ in range(3):
            words.insert(rng.integers(0, len(words)), ("awful", "fine", "great")[i % 3])
        lines.append(f"{' '.join(words)}.,{('bad', 'fair', 'good')[i % 3]}")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with everything: two seeds, dropout, accumulation, fsdp, two lengths, report."""
    folder = tmp_path_factory.mktemp("classify")
    train, test = _texts(folder / "train.csv", 150, 0), _texts(folder / "test.csv", 37, 1)
    out = folder / "run"
    words = ["classify", *TINY, *EVERYTHING, "--train-file", str(train), "--test-file", str(test)]
    assert main([*words, "--out", str(out)]) == 0
    return out, words


def _records(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]


@pytest.mark.slow
def test_it_learns_and_leaves_a_complete_report(finished):
    out, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"]["mean"] > 0.9
    assert len(summary["accuracy"]["per_seed"]) == 2
    assert summary["measured_on"] == "test"
    assert summary["data"]["examples"] == {"train": 135, "validation": 15, "test": 37}
    assert summary["compiled_shapes"] == 2
    assert np.array(summary["confusion"]).sum(axis=(1, 2)).tolist() == [37, 37]
    evals = [r for r in _records(out) if r["kind"] == "eval"]
    best = max(evals, key=lambda r: np.mean(r["val_accuracy"]))
    assert np.mean(best["val_accuracy"]) == summary["val_accuracy"]["mean"]
    for name in ("curves.png", "confusion.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    rows = [line.split(",") for line in (out / "predictions.csv").read_text().splitlines()]
    columns = [f"{x}_seed{seed}" for seed in (0, 1) for x in ("prediction", "p_bad", "p_fair", "p_good")]
    assert rows[0] == ["id", "label", *columns]
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(37)]
    right = np.mean([row[1] == row[2] for row in rows[1:]])
    assert right == pytest.approx(summary["accuracy"]["per_seed"][0])


@pytest.mark.slow
def test_interrupted_and_resumed_is_bit_for_bit_the_same(finished, tmp_path, stop_before, capsys):
    straight, words = finished
    out = tmp_path / "run"
    stop_before(11)
    assert main([*words, "--out", str(out)]) == 143
    assert "stopped after step 11" in (text := capsys.readouterr().out)
    assert "to resume: jaxattn-train classify" in text
    assert main([*words, "--out", str(out)]) == 0
    assert "resuming after step 11" in capsys.readouterr().out
    for kind in ("train", "eval"):
        expected, got = ([r for r in _records(o) if r["kind"] == kind] for o in (straight, out))
        # The record that the signal cut short is of fewer steps; every other number is equal.
        assert [r for r in got if r in expected] == [r for r in expected if r["step"] != 12 or kind == "eval"]
    summaries = [json.loads((o / "summary.json").read_text()) for o in (straight, out)]
    for name in ("accuracy", "loss", "val_loss", "confusion", "best_step"):
        assert summaries[0][name] == summaries[1][name], name
    assert (straight / "predictions.csv").read_text() == (out / "predictions.csv").read_text()


@pytest.mark.slow
def test_the_same_command_again_finds_it_done(finished, capsys):
    out, words = finished
    before = _records(out)
    assert main([*words, "--out", str(out)]) == 0
    assert "all 32 steps are done already" in capsys.readouterr().out
    assert _records(out) == before


@pytest.mark.slow
def test_another_test_file_is_the_same_run(finished, cli, tmp_path, monkeypatch):
    out, words = finished
    shutil.copytree(out, tmp_path / "run")
    other = _texts(tmp_path / "other.csv", 24, 5)
    code, text, err = cli(*words, "--test-file", other, "--out", tmp_path / "run")
    assert code == 0, err
    assert "all 32 steps are done already" in text
    assert json.loads((tmp_path / "run/summary.json").read_text())["data"]["examples"]["test"] == 24


@pytest.mark.slow
def test_the_best_parameters_alone_are_kept_on_request(cli, tmp_path):
    train, out = _texts(tmp_path / "train.csv", 60, 0), tmp_path / "run"
    words = ["classify", *TINY, "--steps", 6, "--eval-every", 2, "--train-file", train, "--out", out]
    code, _, err = cli(*words, "--best-only")
    assert code == 0, err
    (step,) = (out / "checkpoints").iterdir()
    assert not (step / "optimizer").exists()
    assert "all 6 steps are done already" in cli(*words)[1]
    assert cli("evaluate", "--run", out, "--test-file", train)[0] == 0
    code, _, err = cli(*words, "--log-every", 3)
    assert code == 2
    assert "keeps its best parameters alone (--best-only)" in err


@pytest.mark.slow
def test_its_runs_label_and_score_new_texts(finished, cli, tmp_path):
    out, _ = finished
    (tmp_path / "new.txt").write_text("w1 awful awful awful.\n\nw3 great great great.\n")
    code, text, err = cli("predict", "--run", out, "--file", tmp_path / "new.txt")
    assert code == 0, err
    assert [line.split("\t")[0] for line in text.splitlines()] == ["bad", "", "good"]
    code, text, _ = cli("evaluate", "--run", out, "--test-file", out.parent / "test.csv")
    assert code == 0
    report, again = (
        json.loads((path / "summary.json").read_text()) for path in (out, out / "evaluations" / "test")
    )
    assert (again["accuracy"], again["confusion"]) == (report["accuracy"], report["confusion"])
    assert "macro-F1" in text


@pytest.mark.slow
def test_other_data_in_the_same_folder_is_refused(finished, cli, tmp_path):
    out, words = finished
    other = _texts(tmp_path / "other.csv", 150, 2)
    code, _, err = cli(*words, "--train-file", other, "--out", out)
    assert code == 2
    assert "holds a run with other settings: other training data, other validation data" in err
    assert f"--train-file '{out.parent / 'train.csv'}' there and '{other}' here" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset tiny", "--preset must be one of sst2-quick, sst2-study, imdb-quick, imdb-study"),
        (
            "--dataset sst2 --train-file a.csv",
            "--train-file is for --dataset files; got it with --dataset sst2",
        ),
        (
            "--text-column x --preset imdb-quick",
            "--text-column is for --dataset files; got it with --dataset imdb",
        ),
        ("--dataset files", "--dataset files needs --train-file"),
        ("--dataset files --train-file a --data-path b", "--data-path is for the named data sets"),
        ("--dataset files --train-file a --validation-share 2", "must be between 0 and 1; got 2.0"),
        (
            "--dataset files --train-file a --validation-file b --validation-share 0.2",
            "--validation-share is for runs without --validation-file",
        ),
        ("--max-branching 8", "--max-branching is for --attention tree"),
        ("--max-branching 1 --attention tree", "--max-branching must be at least 2; got 1"),
        ("--max-length 0", "--max-length must be at least 1"),
        ("--vocabulary 2", "--vocabulary must be at least 3"),
        ("--num-heads 3", "--num-heads must divide --features = 64"),
        ("--warmup 5000", "--warmup must be less than --steps"),
    ],
)
def test_impossible_flags_are_named(flags, message):
    with pytest.raises(UserError) as raised:
        parse(flags.split())
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train-file nowhere.csv", "cannot read nowhere.csv"),
        ("--text-column sentence", "--text-column must be a column of"),
        ("--attention sofmax", "sofmax"),
        ("--positions foo", "positions must be one of"),
        ("--batch-size 12", "--batch-size must be a multiple of data x fsdp"),
    ],
)
def test_user_mistakes_exit_with_one_line_and_write_nothing(cli, tmp_path, no_typecheck, flags, message):
    train = _texts(tmp_path / "train.csv", 30, 0)
    out = tmp_path / "run"
    code, _, err = cli("classify", *TINY, "--train-file", train, "--out", out, *flags.split())
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not out.exists()


def test_help_and_presets(cli):
    code, text, _ = cli("classify", "--help-all")
    assert code == 0
    for flag in ("--dataset", "--text-column", "--max-length", "--max-branching", "--eval-every", "--seeds"):
        assert flag in text
    for name, config in PRESETS.items():
        assert parse(["--preset", name]) == config
        assert config.out() == f"runs/classify-{name}"
