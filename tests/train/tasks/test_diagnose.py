"""`python -m train diagnose` on a run of a few steps."""

import jax.numpy as jnp
import numpy as np

from train.tasks.charlm.diagnose import attention_tensors
from train.tasks.charlm.sample import load


def test_diagnoses_every_layer_and_saves_its_tensors(tiny, cli, text_file, tmp_path):
    run, saved = tmp_path / "run", tmp_path / "qkv.npz"
    flags = [*tiny, "--text-file", text_file, "--out", run, "--num-layers", 2, "--qk-norm", 0.5]
    assert cli("charlm", *flags)[0] == 0
    code, output, _ = cli(
        "diagnose",
        "--checkpoint",
        run,
        "--text-file",
        text_file,
        "--windows",
        2,
        "--num-features",
        16,
        "--save",
        saved,
    )
    assert code == 0
    assert "layer 0" in output and "layer 1" in output and "Verdict" in output
    arrays = np.load(saved)
    assert {name: arrays[name].shape for name in arrays} == dict.fromkeys("qkv", (4, 16, 2, 8))
    # With qk-norm: unit root mean square times the gain, nearly 0.5 after a few steps.
    np.testing.assert_allclose(np.sqrt((arrays["q"] ** 2).mean(-1)), 0.5, rtol=0.2)


def test_the_model_is_left_as_it_was(tiny, cli, text_file, tmp_path):
    assert cli("charlm", *tiny, "--text-file", text_file, "--out", tmp_path / "run", "--steps", 4)[0] == 0
    model, _ = load(str(tmp_path / "run"))
    tokens = jnp.zeros((1, 8), int)
    before = model(tokens)
    assert len(attention_tensors(model, tokens)) == 1
    np.testing.assert_array_equal(model(tokens), before)


def test_other_text_is_an_error(tiny, cli, text_file, tmp_path):
    assert cli("charlm", *tiny, "--text-file", text_file, "--out", tmp_path / "run", "--steps", 4)[0] == 0
    code, _, error = cli("diagnose", "--checkpoint", tmp_path / "run")
    assert code == 2 and "other text" in error
