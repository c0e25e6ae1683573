"""Sentence encoders beside sentence-transformers, from its files and fixtures."""

import json

import jax
import numpy as np
import pytest

from jaxattn.encoders.sentence.files import write_files
from jaxattn.models import SentenceEncoder, batching
from tests.encoders.helpers import fixture, random_encoder, safetensors_numpy, write
from tests.encoders.make_encoder_fixtures import SENTENCES, TEXTS
from tests.encoders.test_tokenizer import bert, mini_lm_folder, tiny


@pytest.fixture
def folder(tmp_path):
    """The files that sentence-transformers wrote."""
    pytest.importorskip("tokenizers")
    arrays, _ = fixture("sentences")
    write(tmp_path, "{}", fixture("bert")[1])
    for name in arrays:
        if name.startswith("files/"):
            path = tmp_path / name.removeprefix("files/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(str(arrays[name]))
    dense = {name.removeprefix("dense/"): arrays[name] for name in arrays if name.startswith("dense/")}
    safetensors_numpy.save_file(dense, tmp_path / "2_Dense" / "model.safetensors")
    return tmp_path


def changed(path, **settings):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | settings))


def test_embeddings_are_those_of_sentence_transformers(folder, tmp_path):
    arrays, _ = fixture("sentences")
    model = SentenceEncoder.from_pretrained(folder)
    assert model.config.max_length == 12 and model.features == 8
    assert model.config.prompts == (("query", "w18 "),) and model.config.prompt == "w18 "
    np.testing.assert_allclose(model.encode(SENTENCES), arrays["default"], atol=2e-6)
    np.testing.assert_allclose(model.encode(SENTENCES, prompt=""), arrays["document"], atol=2e-6)
    model.save_pretrained(tmp_path / "saved")
    again = SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    np.testing.assert_array_equal(again.encode(SENTENCES), model.encode(SENTENCES))


def test_a_batch_size_changes_nothing_and_each_shape_is_compiled_once(folder):
    model = SentenceEncoder.from_pretrained(folder)
    texts = [" ".join(["w1"] * n) for n in (1, 9, 3, 10, 2, 7, 5, 4, 8, 6)]
    seen = []
    batching._apply.clear_cache()
    whole = model.encode(texts, batch_size=4, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    # 4 rows of 12 and of 8 tokens (twice 12: the limit), and the last 2 rows.
    assert batching._apply._cache_size() <= 3
    before = batching._apply._cache_size()
    np.testing.assert_array_equal(model.encode(texts, batch_size=4), whole)
    assert batching._apply._cache_size() == before
    np.testing.assert_allclose(model.encode(texts, batch_size=16), whole, atol=2e-6)
    assert model.encode([]).shape == (0, 8)
    ids, mask = model.encoder.tokenize(["w18 w1 w1"])
    np.testing.assert_allclose(jax.jit(model.__call__)(ids, mask)[0], whole[4], atol=2e-6)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode": "lasttoken"},
            "pooling must be one of 'cls', 'max', 'mean'",
        ),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt in config.json must be True"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual in config.json must be False"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.Mish"},
            "activation_function must be one of",
        ),
        ("2_Dense/config.json", {"in_features": 16}, r"linear.weight in .* must be \(8, 16\); got \(8, 48\)"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case in .* must be False"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "x"},
            "default_prompt_name must be one of",
        ),
    ],
)
def test_what_would_change_the_embeddings_is_named(folder, file, settings, message):
    changed(folder / file, **settings)
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.from_pretrained(folder)


def test_modules_that_are_not_read_are_named(folder):
    rows = json.loads((folder / "modules.json").read_text())

    def fails(content, message):
        (folder / "modules.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            SentenceEncoder.from_pretrained(folder)

    fails(json.dumps([*rows, {"type": "x.LSTM", "path": ""}]), "type in .* must be one of .*; got 'LSTM'")
    fails(
        json.dumps(rows[::-1]), "must be a Transformer, a Pooling, then Dense, then Normalize; got Normalize"
    )
    fails("{}", "must be a Transformer, a Pooling")
    fails("[1]", "is no list of modules")
    (folder / "modules.json").unlink()
    with pytest.raises(ValueError, match=r"must hold a modules\.json.*SentenceEncoder\(TextEncoder"):
        SentenceEncoder.from_pretrained(folder)


@pytest.mark.usefixtures("no_typecheck")
def test_bad_calls_of_a_sentence_encoder_are_named():
    model = SentenceEncoder(random_encoder())
    with pytest.raises(ValueError, match="texts must be a list of texts; got 'a text'"):
        model.encode("a text")
    with pytest.raises(ValueError, match=r"tokenize needs the tokenizer\.json"):
        model.encode(["a"])
    model.encoder.tokenizer = tiny(bert(True)).tokenizer
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        model.encode(["a"], batch_size=0)
    for pooling in ((), ("median",)):
        with pytest.raises(ValueError, match="pooling must be one of"):
            SentenceEncoder(random_encoder(), pooling=pooling)


def test_older_files_of_the_pooling_are_read_and_written(folder):
    changed(folder / "1_Pooling" / "config.json", pooling_mode=None, pooling_mode_cls_token=True)
    assert SentenceEncoder.from_pretrained(folder, param_dtype="bfloat16").config.pooling == ("cls",)
    model = SentenceEncoder(random_encoder(), pooling=("cls", "mean"))
    write_files(folder / "new", model.config, (), 16)
    found = json.loads((folder / "new" / "1_Pooling" / "config.json").read_text())
    assert (
        found["pooling_mode_cls_token"] and found["pooling_mode_mean_tokens"] and "pooling_mode" not in found
    )


def test_all_minilm_l6_v2_embeds_as_sentence_transformers_does():
    model = SentenceEncoder.from_pretrained(mini_lm_folder())
    assert model.config.max_length == 256
    arrays, _ = fixture("all-minilm-l6-v2-sentences")
    embeddings = model.encode([*TEXTS, TEXTS[1] * 40])  # the last one is cut
    np.testing.assert_allclose(embeddings, arrays["embeddings"], atol=1e-6)
