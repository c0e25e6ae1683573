"""The suites of training steps."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.report import check
from benchmarks.suites import steps
from tests.benchmarks.cases import between


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("steps") / "results/training_step_small.json"
    options = ["--lengths", "16", "--batch", "1", "--repeats", "2", "--out", str(path)]
    attentions = ["--attentions", "softmax", "features:oprf-orf:8", "features:nonesuch-orf:8"]
    assert main(["training-step", *options, *attentions]) == 0
    return path


@pytest.mark.slow
def test_every_attention_has_a_row_and_failures_are_recorded(result):
    document = json.loads(result.read_text())
    assert document["complete"] and document["provenance"]["platform"] == "cpu"
    softmax, features, wrong = document["rows"]
    assert softmax["ratios"] == {"softmax": 1.0}
    assert (
        features["status"] == "ok" and features["ratios"]["softmax"] > 0 and len(features["samples_s"]) == 2
    )
    assert wrong["status"] != "ok" and "nonesuch" in wrong["message"] and "median_s" not in wrong


@pytest.mark.slow
def test_the_table_goes_between_its_markers(result, tmp_path):
    page = tmp_path / "docs/lra.md"
    page.parent.mkdir()
    page.write_text(f"before\n{between('results:training-step')}after\n")
    assert main(["report", "--results", str(result.parent), "--root", str(tmp_path)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| `features:oprf-orf:8` |" in text and "×)" in text and "1 sequences" in text


@pytest.mark.slow
def test_the_promise_is_a_third_of_softmax_at_4096_tokens(result, tmp_path, capsys):
    assert main(["check", str(result)]) == 1, "16 tokens are too few to judge"
    document = json.loads(result.read_text())
    features = document["rows"][1] | {"length": 4096}
    for ratio, kept in ((0.33, True), (0.34, False)):
        (verdict,) = check.judge(document | {"rows": [features | {"ratios": {"softmax": ratio}}]})
        assert verdict[1] is kept and "4096" in verdict[0]
    document["provenance"]["platform"] = "gpu"
    assert not list(check.judge(document))


def test_an_unknown_attention_is_named():
    with pytest.raises(Exception, match="nonesuch"):
        steps.training_step("listops", "nonesuch", 16, 4)


TINY_ENCODER = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.slow
def test_heads_of_an_encoder_are_timed_beside_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "ENCODER", TINY_ENCODER)
    out = tmp_path / "results/head_step_small.json"
    options = ["--length", "8", "--batch", "2", "--repeats", "2", "--out", str(out)]
    assert main(["head-step", *options, "--heads", "mean", "kernel-3", "nonesuch"]) == 0
    mean, inceptive, unknown = json.loads(out.read_text())["rows"]
    assert mean["ratios"] == {"mean": 1.0}
    assert inceptive["status"] == "ok" and inceptive["ratios"]["mean"] > 0
    assert unknown["status"] == "unsupported" and "nonesuch" in unknown["message"]
    page = tmp_path / "docs/heads.md"
    page.parent.mkdir()
    page.write_text(between("results:head-step"))
    assert main(["report", "--results", str(out.parent), "--root", str(tmp_path)]) == 0
    assert "| `mean` |" in page.read_text() and "old" not in page.read_text()
