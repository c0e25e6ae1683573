"""Fine-tuning of a tiny random encoder from its folder: training, resuming, freezing, report, predictions."""

import contextlib
import csv
import dataclasses
import io
import json
import shlex
import types

import chex
import numpy as np
import pytest

from jaxattn_train.cli.commands import main
from jaxattn_train.data.lines import read_texts
from jaxattn_train.engine.checkpoints import Checkpoints
from jaxattn_train.tasks.predict import load
from tests.train.tiny_encoder import KINDS, write_texts

TINY = shlex.split(
    "--dataset files --batch-size 16 --max-length 16 --epochs 6 --warmup 2 --lr 3e-3 --head-lr 1e-2 --log-every 3 "
    "--relevance-texts 3"
)
HEAD = shlex.split("--kernels 2 3 --filters 4 --head-heads 4 --hidden-features 16")
EVERYTHING = shlex.split(
    "--seeds 2 --normalization batch --pooling attention --layerwise-decay 0.9 --class-weights balanced"
)


@pytest.fixture(scope="module")
def finished(folder):
    """One run with everything: two seeds, batch statistics, dropout, rates by layer, class weights, report."""
    words = ["finetune", "--encoder", str(folder / "tiny"), *TINY, *HEAD, *EVERYTHING]
    words += ["--train-file", str(folder / "train.csv"), "--test-file", str(folder / "test.csv")]
    assert main([*words, "--out", str(folder / "run")]) == 0
    return folder / "run", words


def _arrays(out, step):
    manager = Checkpoints(out / "checkpoints", read_only=True, metric="val_f1")._manager
    import orbax.checkpoint as ocp

    standard = ocp.args.StandardRestore
    state = manager.restore(step, args=ocp.args.Composite(params=standard(), optimizer=standard()))
    return {name: state[name] for name in ("params", "optimizer")}


def _records(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]


def test_it_learns_and_leaves_a_complete_report(finished):
    out, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    assert summary["f1"]["mean"] > 0.9
    assert summary["auc"]["mean"] > 0.9
    assert len(summary["f1"]["per_seed"]) == 2
    assert summary["f1"]["spread"] is not None
    # 108 texts in batches of 16: 7 an epoch, evaluated once in each.
    assert (summary["batches_per_epoch"], summary["steps"]) == (7, 42)
    evals = [r for r in _records(out) if r["kind"] == "eval"]
    assert [r["step"] for r in evals] == [7, 14, 21, 28, 35, 42]
    best = max(np.mean(r["val_f1"]) for r in evals)
    assert best == summary["val_f1"]["mean"]
    assert summary["data"]["examples"] == {"train": 108, "validation": 12, "test": 37}
    assert np.array(summary["confusion"]).sum(axis=(1, 2)).tolist() == [37, 37]
    # Running statistics (mean and variance of 8 channels) are not trained; all else is.
    assert summary["parameters_total"] == summary["parameters"] + 16
    assert summary["seconds_per_step"] > 0
    for name in ("curves.png", "confusion.png", "relevance.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:7] == [
        "id", "text", "label", "prediction_seed0", "p_bad_seed0", "p_fair_seed0", "p_good_seed0"
    ]  # fmt: skip
    right = np.mean([row["label"] == row["prediction_seed1"] for row in rows])
    assert right == pytest.approx(summary["accuracy"]["per_seed"][1])
    chances = np.array([[float(row[f"p_{c}_seed0"]) for c in ("bad", "fair", "good")] for row in rows])
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=2e-4)


def test_it_starts_from_the_pretrained_weights_and_moves_lower_layers_less(finished, folder):
    from flax import nnx

    from jaxattn.models import TextEncoder

    out, _ = finished
    start = TextEncoder.from_pretrained(folder / "tiny")
    params = _arrays(out, 42)["params"]
    moved = []
    for layer in (0, 1):
        name = f"blocks.{layer}.mlp.up.kernel"
        before = np.asarray(start.blocks[layer].mlp.up.kernel[...])
        after = np.asarray(params[f"encoder.{name}"])
        assert after.shape == (2, *before.shape)
        assert abs(after[0] - after[1]).max() > 1e-5, "seeds differ in order and dropout"
        moved.append(abs(after - before).mean())
    assert 0 < moved[0] < 0.2
    assert set(params) >= {"encoder." + ".".join(map(str, p)) for p, _ in nnx.to_flat_state(nnx.state(start))}


@pytest.mark.slow
def test_interrupted_and_resumed_is_bit_for_bit_the_same(finished, tmp_path, stop_before, capsys):
    straight, words = finished
    out = tmp_path / "run"
    stop_before(17)
    assert main([*words, "--out", str(out)]) == 143
    assert "stopped after step 17" in capsys.readouterr().out
    assert main([*words, "--out", str(out)]) == 0
    assert "resuming after step 17" in capsys.readouterr().out
    chex.assert_trees_all_equal(_arrays(straight, 42), _arrays(out, 42))
    evals = [[r for r in _records(run) if r["kind"] == "eval"] for run in (straight, out)]
    assert evals[0] == evals[1]
    numbers = [json.loads((run / "summary.json").read_text()) for run in (straight, out)]
    assert numbers[0]["f1"] == numbers[1]["f1"]
    assert main([*words, "--lr", "1e-3", "--out", str(out)]) == 2
    assert "lr 0.003 there and 0.001 here" in capsys.readouterr().err


def _standard_input(monkeypatch, content):
    """As in a container: the locale knows ASCII only."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


def test_predict_labels_new_texts_as_the_report_did(finished, folder, tmp_path, cli, monkeypatch):
    out, _ = finished
    target = tmp_path / "labels.csv"
    code, _, err = cli("predict", "--run", out, "--file", folder / "test.csv", "--out", target)
    assert code == 0, err
    with target.open(newline="") as file, (out / "predictions.csv").open(newline="") as other:
        got, expected = list(csv.DictReader(file)), list(csv.DictReader(other))
    assert [row["prediction"] for row in got] == [row["prediction_seed0"] for row in expected]
    for a, b in zip(got, expected, strict=True):
        assert float(a["p_bad"]) == pytest.approx(float(b["p_bad_seed0"]), abs=2e-4)
    # All of it is in the run's folder: the encoder's own may be gone.
    (folder / "tiny").rename(folder / "away")
    try:
        _standard_input(monkeypatch, b"w1 awful awful awful\n" + b"great w3 great " * 9 + b"\r\n")
        code, text, err = cli("predict", "--run", out, "--model-seed", 1)
    finally:
        (folder / "away").rename(folder / "tiny")
    assert code == 0
    assert [line.split("\t")[0] for line in text.splitlines()] == ["bad", "good"]
    assert text.splitlines()[0].split("\t")[1].startswith("bad=0.")
    assert "1 of 2 texts are longer than 16 tokens and were cut" in err


def test_empty_lines_pass_through(finished, tmp_path, cli, monkeypatch):
    out, _ = finished
    _standard_input(monkeypatch, b"w1 awful awful\n  \n\ngreat\n")
    code, _, err = cli("predict", "--run", out, "--out", tmp_path / "labels.csv", "--batch-size", 3)
    assert code == 0, err
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["w1 awful awful", "  ", "", "great"]
    assert [bool(row["prediction"]) for row in rows] == [True, False, False, True]
    assert [bool(row["p_bad"]) for row in rows] == [True, False, False, True]


def test_lines_are_read_as_they_come():
    def stream():
        yield b"one\n"
        yield b"two\n"
        raise AssertionError("read ahead")

    class Pipe(contextlib.closing):
        def __iter__(self):
            return self.thing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", types.SimpleNamespace(buffer=Pipe(stream())))
        lines = read_texts(None, None)
        assert [next(lines).text, next(lines).text] == ["one", "two"]


def test_evaluate_gives_the_numbers_of_the_report(finished, folder, cli, monkeypatch):
    out, _ = finished
    code, text, err = cli("evaluate", "--run", out, "--test-file", folder / "test.csv")
    assert code == 0, err
    report, again = (
        json.loads((path / "summary.json").read_text()) for path in (out, out / "evaluations" / "test")
    )
    for name in ("accuracy", "f1", "confusion"):
        assert again[name] == report[name]
    assert f"macro-F1 {report['f1']['mean']:.4f}" in text
    with (out / "evaluations/test/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (out / "predictions.csv").open(newline="") as file:
        assert [row["prediction_seed1"] for row in rows] == [
            r["prediction_seed1"] for r in csv.DictReader(file)
        ]
    other = folder / "unknown.csv"
    other.write_text("text,label\nw1,good\nw2,odd\n")
    code, _, err = cli("evaluate", "--run", out, "--test-file", other)
    assert code == 2
    assert f"{other}:3 has the label 'odd', which no training text has" in err


def test_evaluate_reads_the_columns_that_it_is_given(finished, folder, cli, monkeypatch):
    """--label-column also where the run had columns of 0 and 1; files whose names share a first part."""
    out, _ = finished
    loaded = load(str(out))
    config = loaded.record["config"]
    data = config["data"] | {"label_columns": ["bad", "good"]}
    record = loaded.record | {"config": config | {"data": data}, "seeds": [0]}
    run = dataclasses.replace(loaded, record=record)
    monkeypatch.setattr("jaxattn_train.tasks.predict.evaluate.load", lambda *args, **kwargs: run)
    words = ["evaluate", "--run", out, "--label-column", "label", "--test-file"]
    for name, count in (("new.1.csv", 2), ("new.2.csv", 1)):
        (folder / name).write_text("text,label\n" + "w1 awful,bad\n" * count)
        code, _, err = cli(*words, folder / name)
        assert code == 0, err
        written = out / "evaluations" / name.removesuffix(".csv")
        assert json.loads((written / "summary.json").read_text())["texts"] == count
    assert "got both" in cli(*words, folder / "test.csv", "--label-columns", "bad", "good")[2]
    code, _, err = cli(*words, folder / "test.csv", "--out", folder / "test.csv")
    assert code == 2 and f"cannot write {folder / 'test.csv'}: File exists" in err


def test_a_finished_run_prints_its_summary_at_once(finished, cli, monkeypatch):
    out, words = finished

    def fail(*args, **kwargs):
        raise AssertionError("opened to train")

    monkeypatch.setattr("jaxattn_train.tasks.shared.training.Run", fail)
    code, text, _ = cli(*words, "--out", out)
    assert code == 0
    assert "all 42 steps are done already\ndone: test accuracy" in text
    with pytest.raises(AssertionError, match="opened to train"):
        cli(*words, "--out", out, "--relevance-texts", 4)


def test_predict_says_what_is_wrong(finished, folder, tmp_path, cli, monkeypatch):
    out, _ = finished
    _standard_input(monkeypatch, b"")
    assert "standard input holds no text" in cli("predict", "--run", out)[2]
    _standard_input(monkeypatch, b"fine\ncaf\xe9\n")
    code, _, err = cli("predict", "--run", out)
    assert code == 2
    assert "line 2 of standard input must be UTF-8 text; got the byte 0xe9" in err
    assert len(err.splitlines()) == 1
    (tmp_path / "lone.jsonl").write_text('{"text": "great \\ud83d"}\n')
    assert "must be Unicode text" in cli("predict", "--run", out, "--file", tmp_path / "lone.jsonl")[2]
    column = cli("predict", "--run", out, "--file", folder / "test.csv", "--text-column", "tweet")
    assert column[0] == 2
    assert "--text-column must be a column of" in column[2]
    assert f"{out} is no run of charlm" in cli("sample", "--run", out)[2]
    assert "no such folder" in cli("predict", "--run", tmp_path / "none", "--file", folder / "test.csv")[2]
    missing = cli("predict", "--run", out, "--file", tmp_path / "none.txt")
    assert missing[0] == 2
    assert "cannot read" in missing[2]
    table = tmp_path / "lines.csv"
    table.write_text('text\n"w1\nw2"\n')
    assert len(cli("predict", "--run", out, "--file", table)[1].splitlines()) == 1
    assert "--out must be another file" in cli("predict", "--run", out, "--file", table, "--out", table)[2]
    assert "w1" in table.read_text()
    assert (
        "--step must be one of" in cli("predict", "--run", out, "--step", 3, "--file", folder / "test.csv")[2]
    )


@pytest.mark.slow
def test_a_run_with_the_published_head_is_a_classifier_of_transformers(folder, tmp_path, cli):
    from jaxattn.models import TextClassifier
    from jaxattn_train.tasks.predict import load

    words = ["finetune", "--encoder", folder / "tiny", *TINY, "--head", "published", "--epochs", 2]
    code, out, err = cli(*words, "--train-file", folder / "train.csv", "--out", tmp_path / "run")
    assert code == 0, err
    assert "no relevance.png: the published head reads one token" in out
    run, texts = load(str(tmp_path / "run")), ["great w1", "w2 awful awful"]
    run.module().save_pretrained(tmp_path / "saved")
    saved = TextClassifier.from_pretrained(tmp_path / "saved")
    assert saved.labels == ("bad", "fair", "good")
    np.testing.assert_allclose(saved.predict(texts), run.predict(texts), atol=1e-6)
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["label2id"] == {"bad": 0, "fair": 1, "good": 2}


@pytest.mark.slow
def test_a_frozen_encoder_stays_and_only_the_head_is_optimised(folder, tmp_path, cli):
    """With several labels a text, another attention inside the encoder, and an early end."""
    from jaxattn.models import TextEncoder

    def labels(found):
        return ";".join(KINDS[word] for word in found)

    train = write_texts(tmp_path / "train.csv", 100, 2, labels)
    words = ["finetune", "--encoder", folder / "tiny", *TINY, "--head", "mean", "--freeze-encoder"]
    words += ["--attention", "softmax+gate", "--attention-layers", -1, "--loss", "multilabel"]
    words += ["--label-separator", ";", "--class-weights", "balanced", "--train-file", train]
    # So slow that no evaluation is better than the first one.
    words += ["--lr", 1e-12, "--head-lr", 1e-12, "--patience", 2, "--out", tmp_path / "run"]
    code, out, err = cli(*words)
    assert code == 0, err
    assert "no better val_f1 in 2 evaluations: done" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 18
    assert summary["parameters"] == 16 * 3 + 3
    assert summary["data"]["classes"] == ["bad", "fair", "good"]
    assert np.array(summary["confusion"]).shape == (1, 3, 4)
    saved = _arrays(tmp_path / "run", 18)
    start = TextEncoder.from_pretrained(folder / "tiny")
    np.testing.assert_array_equal(
        saved["params"]["encoder.blocks.1.attention.query.kernel"][0],
        start.blocks[1].attention.query.kernel[...],
    )
    assert "encoder.blocks.1.attention.mechanism.alpha" in saved["params"]
    assert "encoder.blocks.0.attention.mechanism.alpha" not in saved["params"]
    names = {str(getattr(path[-1], "key", "")) for path, _ in _leaves(saved["optimizer"])}
    assert {"head.out.kernel"} <= names
    assert not any(name.startswith("encoder.") for name in names)
    # The same command finds nothing left to do.
    (tmp_path / "run" / "summary.json").unlink()
    code, out, _ = cli(*words)
    assert code == 0
    assert "all 18 steps are done already" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["f1"] == summary["f1"]


def _leaves(tree):
    import jax

    return jax.tree.leaves_with_path(tree)
