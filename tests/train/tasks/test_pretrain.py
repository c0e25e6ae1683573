"""Masked language modelling on a file of texts: masks, windows, training, resuming, and the model that is written."""

import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.models import MaskedLanguageModel, TextEncoder
from jaxattn_train.cli.commands import main
from jaxattn_train.tasks.charlm.windows import SeedStreams
from jaxattn_train.tasks.pretrain.config import PretrainData
from jaxattn_train.tasks.pretrain.data import make_windows, mask_tokens
from tests.train.tiny_encoder import save_tiny_encoder

pytest.importorskip("tokenizers")
SMALL = "--max-length 16 --batch-size 8 --steps 8 --warmup 2 --lr 3e-3 --eval-every 4 --log-every 4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny encoder with a head, and a file whose words follow each other in a circle."""
    path = tmp_path_factory.mktemp("pretrain")
    encoder = TextEncoder.from_pretrained(save_tiny_encoder(path / "bare", layers=1))
    MaskedLanguageModel(encoder, rngs=nnx.Rngs(1)).save_pretrained(path / "tiny")
    lines = [" ".join(f"w{(start + i) % 20}s" for i in range(12)) for start in range(40)]
    (path / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_are_of_whole_words_where_asked(folder, whole_words):
    encoder = TextEncoder.from_pretrained(folder / "tiny")
    windows = make_windows(
        ["w1s w2 w3s w4s w5"] * 30, encoder, PretrainData("", max_length=16, whole_words=whole_words)
    )
    assert windows.shape[1:] == (2, 16) and windows.dtype == np.int32
    assert (windows[:, 0, 0] == 2).all() and (windows[:, 0, -1] == 3).all()  # [CLS] and [SEP]
    batch = jnp.asarray(np.tile(windows, (40, 1, 1)))
    run = jax.jit(lambda x, key: mask_tokens(x, key, rate=0.25, mask_id=4, vocab_size=30))
    masked = jax.tree.map(np.asarray, run(batch, jax.random.key(0)))
    ids, words = np.asarray(batch[:, 0]), np.asarray(batch[:, 1])
    row = np.arange(len(ids))[:, None]
    chosen = np.zeros(ids.shape, bool)
    chosen[row, masked.places] = masked.weights > 0
    assert not chosen[words < 0].any()
    np.testing.assert_array_equal(masked.targets, ids[row, masked.places])
    np.testing.assert_array_equal(masked.inputs[~chosen], ids[~chosen])
    new, old = masked.inputs[chosen], ids[chosen]
    share = [(new == 4).mean(), ((new != 4) & (new != old)).mean(), (new == old).mean()]
    np.testing.assert_allclose(share, [0.8, 0.1, 0.1], atol=0.04)
    together = [
        len(set(chosen[i][words[i] == word])) == 1 for i in range(len(ids)) for word in set(words[i]) - {-1}
    ]
    assert all(together)
    if whole_words:  # pairs of tokens such as w1 ##s
        assert any((words[0] == word).sum() == 2 for word in set(words[0]) - {-1})
    else:
        assert chosen.sum(axis=1).max() == chosen.sum(axis=1).min() == 4


def words_of(folder, out, *more):
    files = ["--train-file", folder / "texts.txt", "--encoder", folder / "tiny", "--out", out]
    return ["pretrain", *shlex.split(SMALL), *map(str, files), *more]


def test_it_learns_and_writes_a_model_that_finetune_and_transformers_read(folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words_of(folder, out, "--whole-words")) == 0
    printed = capsys.readouterr().out
    assert "before: validation loss" in printed and "the encoder is in model" in printed
    summary = json.loads((out / "summary.json").read_text())
    before = float(printed.partition("before: validation loss ")[2].split()[0])
    assert summary["val_loss"]["mean"] < before
    model, start = (MaskedLanguageModel.from_pretrained(path) for path in (out / "model", folder / "tiny"))
    assert model.encoder.tokenizer == start.encoder.tokenizer
    moved = abs(model.head.transform.dense.kernel[...] - start.head.transform.dense.kernel[...]).max()
    assert 0 < moved < 0.2
    assert main(words_of(folder, out, "--whole-words")) == 0
    assert "all 8 steps are done already" in capsys.readouterr().out


@pytest.mark.slow
def test_pretraining_resumes_bit_for_bit(folder, tmp_path, stop_before, capsys):
    assert main(words_of(folder, tmp_path / "straight", "--seeds", "2")) == 0
    stop_before(5, SeedStreams)
    assert main(words_of(folder, tmp_path / "run", "--seeds", "2")) == 143
    assert main(words_of(folder, tmp_path / "run", "--seeds", "2")) == 0
    assert "resuming after step 5" in capsys.readouterr().out
    first, second = (
        MaskedLanguageModel.from_pretrained(tmp_path / name / "model") for name in ("straight", "run")
    )
    for a, b in zip(jax.tree.leaves(nnx.state(first)), jax.tree.leaves(nnx.state(second)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max-length 65", "--max-length must be at most 64, the encoder's limit; got 65"),
        ("--mask-rate 1", "--mask-rate must be above 0 and below 1; got 1"),
        ("--train-file nowhere.txt", "cannot read nowhere.txt"),
        ("--max-length 64", "--validation-file must hold more text"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(folder, tmp_path, flags, message, capsys):
    (folder / "short.txt").write_text("w1 w2\n" * 30)
    words = words_of(folder, tmp_path / "run", "--train-file", str(folder / "short.txt"))
    assert main([*words, *shlex.split(flags)]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_an_encoder_without_the_head_is_named(folder, tmp_path, capsys):
    words = words_of(folder, tmp_path / "run", "--encoder", str(folder / "bare"))
    assert main(words) == 2
    assert "must hold the head of this task" in capsys.readouterr().err
