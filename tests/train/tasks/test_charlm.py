"""`jaxattn-train charlm | sample | diagnose` on one run with everything."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn_train.tasks.charlm.diagnose import attention_tensors
from jaxattn_train.tasks.charlm.sample import load


def _metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_leaves_a_complete_report(charlm_run):
    out, _ = charlm_run
    for name in (
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "loss.png",
        "gates.png",
        "morlet.png",
        "sample.txt",
    ):
        assert (out / name).stat().st_size > 0, name
    summary = json.loads((out / "summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert len(summary["val_loss"]["per_seed"]) == 2
    assert summary["val_loss"]["mean"] == pytest.approx(np.mean(summary["val_loss"]["per_seed"]))
    assert summary["best_val_loss"]["mean"] < 3.4
    assert summary["parameters"] > 1000
    assert summary["device"]["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1, "sequence": 1}
    assert summary["config"]["model"]["positions"] == "morlet:learned"
    np.testing.assert_allclose(
        summary["val_loss_whole"]["per_seed"], summary["val_loss_prefix"]["per_seed"], atol=1e-4
    )
    assert len((out / "sample.txt").read_text()) == 4 + 20 + 1


def test_records_every_step_once(charlm_run):
    out, _ = charlm_run
    records = _metrics(out)
    assert [r["step"] for r in records if r["kind"] == "train"] == [2, 4, 6, 8]
    assert [r["step"] for r in records if r["kind"] == "eval"] == [4, 8]
    train, last_eval = records[0], records[-1]
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_second"} <= set(train)
    assert last_eval["val_bits_per_character"][0] == pytest.approx(last_eval["val_loss"][0] / np.log(2))


def test_the_same_command_again_finds_it_done(charlm_run, cli):
    out, words = charlm_run
    before = _metrics(out)
    code, text, _ = cli(*words)
    assert code == 0
    assert "all 8 steps are done already" in text
    assert _metrics(out) == before


def test_other_settings_in_the_same_folder_are_refused(charlm_run, cli):
    out, words = charlm_run
    code, _, err = cli(*words, "--lr", "0.5")
    assert code == 2
    assert "lr 0.01 there and 0.5 here" in err
    assert "--overwrite" in err
    assert len(_metrics(out)) == 6


def test_samples_from_the_run(charlm_run, cli):
    out, _ = charlm_run
    words = ("sample", "--run", out, "--prompt", "the ", "--tokens", 10)
    code, text, _ = cli(*words)
    assert code == 0
    assert text.startswith("the ")
    assert len(text) == 4 + 10 + 1
    assert cli(*words)[1] == text
    assert cli(*words, "--seed", 1)[1] != text
    assert cli(*words, "--model-seed", 1, "--step", 4)[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt", "the €"), "does not know the characters '€'"),
        (("--prompt", ""), "--prompt must hold at least one character"),
        (("--step", "5"), "--step must be one of 4, 8; got 5"),
        (("--model-seed", "7"), "--model-seed must be one of 0, 1; got 7"),
        (("--tokens", "0"), "--tokens must be at least 1"),
        (("--top-k", "0"), "top_k must be at least 1"),
        (("--temperature", "-1"), "temperature must be at least 0"),
        (("--run", "nowhere"), "no such folder: nowhere"),
    ],
)
def test_sampling_mistakes_are_named(charlm_run, cli, flags, message):
    code, _, err = cli("sample", "--run", charlm_run[0], *flags)
    assert code == 2
    assert message in err


@pytest.mark.slow
def test_a_run_that_diverges_stops_at_its_last_good_checkpoint(cli, tiny, text_file, tmp_path):
    # The rate is 0 in the first step of the warm-up, so there is one good checkpoint.
    out = tmp_path / "run"
    words = ("charlm", *tiny, "--text-file", text_file, "--out", out)
    code, _, err = cli(*words, "--lr", "1e38", "--warmup", "1", "--eval-every", "1", "--steps", "30")
    assert code == 1
    assert "stopped being finite at step" in err
    assert str(out / "checkpoints" / "1") in err
    assert len(err.splitlines()) == 1
    assert [int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit()] == [1]


@pytest.mark.slow
def test_diagnoses_every_layer_on_the_text_of_the_run(charlm_run, cli, tmp_path):
    saved = tmp_path / "qkv.npz"
    words = ("--windows", 2, "--num-features", 16, "--save", saved)
    code, output, _ = cli("diagnose", "--run", charlm_run[0], *words)
    assert code == 0
    assert "layer 0" in output and "layer 1" in output and "Verdict" in output
    arrays = np.load(saved)
    assert {name: arrays[name].shape for name in arrays} == dict.fromkeys("qkv", (4, 16, 2, 8))
    # With qk-norm: unit root mean square times the gain, nearly 0.5 after a few steps.
    np.testing.assert_allclose(np.sqrt((arrays["q"] ** 2).mean(-1)), 0.5, rtol=0.2)


def test_the_model_is_left_as_it_was(charlm_run):
    model, _ = load(str(charlm_run[0]))
    tokens = jnp.zeros((1, 8), int)
    before = model(tokens)
    assert len(attention_tensors(model, tokens)) == 2
    np.testing.assert_array_equal(model(tokens), before)


def test_text_with_other_characters_is_an_error(charlm_run, cli, tmp_path):
    (tmp_path / "other.txt").write_text("0123456789" * 100)
    code, _, error = cli("diagnose", "--run", charlm_run[0], "--text-file", tmp_path / "other.txt")
    assert code == 2 and "other characters" in error
