"""`jaxattn-train diagnose` on a run of a few steps."""

import jax.numpy as jnp
import numpy as np

from jaxattn_train.tasks.charlm.diagnose import attention_tensors
from jaxattn_train.tasks.charlm.sample import load


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
