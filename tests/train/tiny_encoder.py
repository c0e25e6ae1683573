"""A random BERT of a few thousand parameters with a tokenizer of its own, in a folder as pretrained ones come."""

import json

import numpy as np

WORDS = [f"w{n}" for n in range(20)] + ["awful", "fine", "great", "##s", "-"]
KINDS = {"awful": "bad", "fine": "fair", "great": "good"}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_tiny_encoder(folder, *, layers=2, width=16, dropout=0.1):
    """Writes config.json, model.safetensors and tokenizer.json; returns the folder."""
    from flax import nnx

    from jaxattn.models import EncoderConfig, TextEncoder

    sizes = {"vocab_size": 40, "hidden_size": width, "intermediate_size": 2 * width}
    config = EncoderConfig.from_dict(
        {
            "model_type": "bert",
            **sizes,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "hidden_dropout_prob": dropout,
        }
    )
    TextEncoder(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()), encoding="utf-8")
    return folder


def _tokenizer():
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}

    def special(name):
        return {"SpecialToken": {"id": name, "type_id": 0}}

    def token(name):
        return {"id": name, "ids": [vocabulary[name]], "tokens": [name]}

    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[name], "content": name, **added} for name in SPECIAL],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
            "pair": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
            "special_tokens": {name: token(name) for name in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


def write_texts(path, count, seed, label=lambda found: KINDS[found[0]]):
    """Texts of which some words tell the label, in quotes."""
    rng = np.random.default_rng(seed)
    lines = ["text,label"]
    for i in range(count):
        found = sorted({list(KINDS)[i % 3], *rng.choice(list(KINDS), rng.integers(0, 2))})
        if label.__name__ == "<lambda>":
            found = [list(KINDS)[i % 3]]
        words = [f"w{n}" for n in rng.integers(0, 20, rng.integers(2, 7))] + found * 3
        lines.append(f'{" ".join(rng.permutation(words))},"{label(found)}"')
    path.write_text("\n".join(lines))
    return path
