"""Heads that come with checkpoints beside those of transformers, from fixtures."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.encoders.families import FAMILIES
from jaxattn.encoders.heads.names import MASKED, SEQUENCE, TOKENS
from jaxattn.models import MaskedLanguageModel, TextClassifier, TokenClassifier
from jaxattn.nn import InceptiveHead
from tests.encoders.helpers import fixture, safetensors_numpy, same_tensors, write
from tests.encoders.make_encoder_fixtures import FIXTURES, HEADED, PART, TASKS
from tests.encoders.test_tokenizer import bert, tiny

MODELS = dict(zip(TASKS, (MaskedLanguageModel, TextClassifier, TokenClassifier), strict=True))


def saved(folder, name, task, **settings):
    """A checkpoint of a small model with a head: the folder, the fixture's arrays, all tensors, and logits."""
    arrays, encoder = fixture(name)
    with np.load(FIXTURES / "heads.npz") as heads:
        prefix, start = str(heads[f"{name}/prefix"]), f"{name}/{task}/"
        weights = {prefix + key: value for key, value in encoder.items()}
        weights |= {
            key.removeprefix(f"{start}weights/"): heads[key]
            for key in heads
            if key.startswith(f"{start}weights")
        }
        logits = heads[f"{start}logits"]
    config = json.loads(str(arrays["config"])) | {"id2label": {"2": "c", "0": "a", "1": "b"}} | settings
    folder.mkdir(exist_ok=True)
    return write(folder, config, weights), arrays, weights, logits


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", HEADED)
@pytest.mark.few(12)
def test_logits_are_those_of_transformers(name, task, tmp_path):
    folder, arrays, weights, expected = saved(tmp_path / "theirs", name, task)
    model = MODELS[task].from_pretrained(folder)
    hidden, mask = jnp.asarray(arrays["states"][-1]), arrays["attention_mask"]
    if task == TASKS[0]:
        logits = model.head(hidden, model.encoder.embeddings.word[...])[:, ::PART]
        mask = mask[:, ::PART]
        model.save_pretrained(tmp_path / "ours")
        ours = safetensors_numpy.load_file(tmp_path / "ours" / "model.safetensors")
        assert set(ours) == {key for key in weights if "pooler" not in key}
        for key, array in ours.items():
            np.testing.assert_array_equal(array, weights[key], err_msg=key)
    else:
        assert model.labels == ("a", "b", "c")
        if task == TASKS[1]:
            model.save_pretrained(tmp_path / "ours")
            same_tensors(tmp_path / "ours", weights)
            written = json.loads((tmp_path / "ours" / "config.json").read_text())
            assert written["id2label"] == {"0": "a", "1": "b", "2": "c"}
            assert written["problem_type"] == "single_label_classification"
        logits = model.head(hidden, jnp.asarray(mask)) if task == TASKS[1] else model.head(hidden)
    if task == TASKS[1]:
        # transformers takes the first column as [CLS]; ours, the first token that is not padding.
        whole = mask[:, 0]
        np.testing.assert_allclose(logits[whole], expected[whole], atol=2e-5)
    else:
        np.testing.assert_allclose(logits[mask], expected[mask], atol=2e-5)


def test_whole_models_are_those_of_transformers(tmp_path):
    for task in TASKS:
        folder, arrays, _, expected = saved(tmp_path, "bert", task)
        model = MODELS[task].from_pretrained(folder)
        ids, mask, types = (
            jnp.asarray(arrays[key][:2]) for key in ("input_ids", "attention_mask", "token_type_ids")
        )
        if task == TASKS[0]:
            places = jnp.tile(jnp.arange(0, 20, PART), (2, 1))
            logits = model(ids, mask, places=places, token_type_ids=types)
            seen = mask[:, ::PART]
        elif task == TASKS[1]:
            logits, seen = model(ids, mask, token_type_ids=types), slice(None)
        else:
            continue  # the head alone is tested above
        np.testing.assert_allclose(logits[seen], expected[:2][seen], atol=2e-5)


def test_a_head_of_its_own_last_layer_and_other_names(tmp_path):
    """Untied words, and the newer names of DeBERTa's head."""
    folder, arrays, weights, expected = saved(tmp_path, "bert", TASKS[0], tie_word_embeddings=False)
    kernel = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    write(
        folder,
        json.loads((folder / "config.json").read_text()),
        weights | {"cls.predictions.decoder.weight": kernel},
    )
    model = MaskedLanguageModel.from_pretrained(folder)
    np.testing.assert_array_equal(model.head.kernel[...], kernel.T)
    folder, arrays, weights, expected = saved(tmp_path, "deberta-v3", TASKS[0])
    renamed = {
        key.replace("cls.predictions.transform", "lm_predictions.lm_head").replace(
            "cls.predictions", "lm_predictions.lm_head"
        ): value
        for key, value in weights.items()
    }
    write(folder, json.loads((folder / "config.json").read_text()), renamed)
    model = MaskedLanguageModel.from_pretrained(folder)
    logits = model.head(jnp.asarray(arrays["states"][-1]), model.encoder.embeddings.word[...])[:, ::PART]
    mask = arrays["attention_mask"][:, ::PART]
    np.testing.assert_allclose(logits[mask], expected[mask], atol=2e-5)


def test_every_family_has_every_head():
    assert set(MASKED) == set(SEQUENCE) == set(TOKENS) == set(FAMILIES)


def test_a_head_that_is_missing_is_named(tmp_path):
    folder, *_ = saved(tmp_path, "bert", TASKS[0])
    with pytest.raises(
        ValueError, match=r"must hold the head of this task, with the tensors classifier\.weight"
    ):
        TextClassifier.from_pretrained(folder)
    folder, *_ = saved(tmp_path, "roberta", TASKS[2])
    with pytest.raises(
        ValueError, match=r"with the tensors lm_head\.bias and lm_head\.dense\.weight; the file has"
    ):
        MaskedLanguageModel.from_pretrained(folder)


def test_only_heads_of_transformers_are_saved(tmp_path):
    folder, *_ = saved(tmp_path, "bert", TASKS[1])
    model = TextClassifier.from_pretrained(folder)
    model.labels = ("a", "b")
    with pytest.raises(ValueError, match="labels must be one for each of the head's 3 outputs"):
        model.save_pretrained(tmp_path / "ours")
    inceptive = InceptiveHead(16, 3, filters=4, num_heads=4, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"got TextEncoder with InceptiveHead\. model\.encoder\.save_pretrained"
    ):
        TextClassifier(model.encoder, inceptive).save_pretrained(tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_published_classifiers_predict(tmp_path):
    pytest.importorskip("tokenizers")
    texts = ["hello world", "World", "Hello hello world world"]
    folder, *_ = saved(tmp_path, "bert", TASKS[1])
    model = TextClassifier.from_pretrained(folder)
    model.encoder.tokenizer = tiny(bert(True)).tokenizer
    chances = model.predict(texts, batch_size=2)
    assert chances.shape == (3, 3)
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.predict(texts[:1])[0], chances[0], atol=1e-6)
    assert abs(model.predict(texts[:1], texts[1:2])[0] - chances[0]).max() > 1e-4
    with pytest.raises(ValueError, match="second one as long"):
        model.predict(texts, ["a"])
    folder, *_ = saved(tmp_path, "bert", TASKS[2])
    tagger = TokenClassifier.from_pretrained(folder)
    tagger.encoder.tokenizer = model.encoder.tokenizer
    labels = tagger.predict(texts)
    assert [[(x.start, x.end) for x in row] for row in labels[:2]] == [[(0, 5), (6, 11)], [(0, 5)]]
    assert all(x.label in "abc" and 1 / 3 <= x.probability <= 1 for row in labels for x in row)
