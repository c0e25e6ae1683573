"""Writes tiny models of every family and their hidden states in torch, for tests that run without torch.

    python tests/encoders/make_encoder_fixtures.py [folder of all-MiniLM-L6-v2]

needs torch, transformers and sentence-transformers. It writes fixtures/*.npz: weights, config.json, a batch and all
hidden states.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"
LENGTH = 20
TEXTS = [
    "A short text.",
    "Energy-gated attention lets every token announce how much it matters.",
    "Käsekuchen, 北京 and naïve café!",
    "?",
]

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
RELATIVE = {"model_type": "deberta-v2", **SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
V3 = {
    **RELATIVE,
    "position_buckets": 4,
    "max_relative_positions": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
DISTIL = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}
# ModernBERT's special tokens have ids beyond a small vocabulary.
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
MODERN = {
    "model_type": "modernbert",
    **SIZES,
    **SPECIAL,
    "num_hidden_layers": 4,
    "local_attention": 8,
    "tie_word_embeddings": False,
}

CONFIGS = {
    "bert": {"model_type": "bert", **SIZES, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    "roberta": {"model_type": "roberta", **SIZES, "type_vocab_size": 1, "pad_token_id": 1},
    "xlm-roberta": {"model_type": "xlm-roberta", **SIZES, "type_vocab_size": 1, "pad_token_id": 3},
    "distilbert": {"model_type": "distilbert", **SIZES, **DISTIL},
    "camembert": {"model_type": "camembert", **SIZES, "type_vocab_size": 1, "pad_token_id": 1},
    "electra": {"model_type": "electra", **SIZES, "embedding_size": 8},
    "albert": {
        "model_type": "albert",
        **SIZES,
        "embedding_size": 8,
        "num_hidden_groups": 2,
        "num_hidden_layers": 3,
    },
    "mpnet": {"model_type": "mpnet", **SIZES},
    "nomic_bert": {"model_type": "nomic_bert", **SIZES},
    "gte": {"model_type": "gte", **SIZES, "hidden_dropout_prob": 0.0},
    "deberta-v3": V3,
    "deberta-v2-convolution": {**V3, "conv_kernel_size": 3, "conv_act": "gelu"},
    # Own projections, one row a distance, absolute positions and token types besides.
    "deberta-v1-settings": {**RELATIVE, "type_vocab_size": 2, "max_relative_positions": 8},
    "deberta-c2p-alone": {**RELATIVE, "pos_att_type": "c2p"},
    "modernbert": MODERN,
    "modernbert-linear": {
        **MODERN,
        "num_hidden_layers": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
}


def torch_model(name):
    """A model with random weights, also where transformers starts from zeros and ones."""
    import torch
    import transformers

    settings = dict(CONFIGS[name])
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(sum(map(ord, name)))
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(pad_token_id):
    """Rows without padding, padded on the right, on the left, and with one token."""
    mask = np.ones((4, LENGTH), bool)
    mask[1, 13:] = False
    mask[2, :7] = False
    mask[3, 1:] = False
    ids = np.random.default_rng(0).integers(4, 60, mask.shape)
    return np.where(mask, ids, pad_token_id).astype(np.int32), mask


def torch_states(model, ids, mask, token_type_ids=None):
    """All hidden states, the last with the final normalisation: (layers + 1, B, L, D)."""
    import torch

    extra = {} if token_type_ids is None else {"token_type_ids": torch.tensor(token_type_ids).long()}
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids).long(),
            attention_mask=torch.tensor(mask).long(),
            output_hidden_states=True,
            **extra,
        )
    states = [state.numpy() for state in out.hidden_states]
    states[-1] = out.last_hidden_state.numpy()
    return np.stack(states)


def token_types(config):
    """A second text from the sixth token on, in models that tell texts apart."""
    if getattr(config, "type_vocab_size", 0) < 2:
        return None
    return np.broadcast_to(np.arange(LENGTH) > 5, (4, LENGTH)).astype(np.int32)


def write_family(name):
    """One family's fixture."""
    from safetensors.numpy import load_file

    model = torch_model(name)
    config = model.config.to_dict()
    ids, mask = batch(config["pad_token_id"])
    types = token_types(model.config)
    extra = {} if types is None else {"token_type_ids": types}
    with tempfile.TemporaryDirectory() as folder:  # the names of files, which may differ from those in memory
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
    np.savez_compressed(
        FIXTURES / f"{name}.npz",
        config=json.dumps(config, default=str),
        input_ids=ids,
        attention_mask=mask,
        states=torch_states(model, ids, mask, types),
        **extra,
        **{f"weights/{key}": value for key, value in weights.items()},
    )


def write_functions():
    """Activations and the buckets of distances."""
    import torch
    from transformers.activations import ACT2FN
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    x = np.linspace(-6, 6, 101, dtype=np.float32)
    names = ["gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu"]
    names += ["relu", "silu", "swish", "tanh"]
    distance = np.arange(-1100, 1101)
    np.savez_compressed(
        FIXTURES / "functions.npz",
        x=x,
        distance=distance.astype(np.int16),
        **{f"activation/{name}": ACT2FN[name](torch.tensor(x)).numpy() for name in names},
        **{
            f"buckets/{size}/{most}": make_log_bucket_position(torch.tensor(distance), size, most)
            .numpy()
            .astype(np.int16)
            for size, most in ((4, 16), (256, 512), (32, 128), (256, 1024))
        },
    )


HEADED = ("bert", "roberta", "distilbert", "electra", "albert", "mpnet", "nomic_bert", "gte", "deberta-v3")
HEADED += ("modernbert",)
TASKS = ("MaskedLM", "SequenceClassification", "TokenClassification")
PART = 5  # one token in five, where there are logits of all words


def write_heads():
    """Heads on the small models: their own tensors, and logits of the batch."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    arrays = {}
    for name in HEADED:
        base = torch_model(name)
        ids, mask = batch(base.config.pad_token_id)
        types = token_types(base.config)
        extra = {} if types is None else {"token_type_ids": torch.tensor(types).long()}
        own = {key for key in np.load(FIXTURES / f"{name}.npz") if key.startswith("weights/")}
        for task in TASKS:
            config = type(base.config).from_dict(base.config.to_dict())
            config.id2label = dict(enumerate("abc"))
            config._attn_implementation = "eager"
            torch.manual_seed(1)
            model = getattr(transformers, f"AutoModelFor{task}").from_config(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
            model.base_model.load_state_dict(base.state_dict(), strict=False)
            with torch.no_grad():
                call = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask).long()}
                logits = model(**call, **extra).logits.numpy()
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                weights = load_file(f"{folder}/model.safetensors")
            prefix = f"{model.base_model_prefix}."
            arrays[f"{name}/{task}/logits"] = logits[:, ::PART] if task == TASKS[0] else logits
            for key, value in weights.items():
                if f"weights/{key.removeprefix(prefix)}" not in own or not key.startswith(prefix):
                    arrays[f"{name}/{task}/weights/{key}"] = value
        arrays[f"{name}/prefix"] = prefix
    np.savez_compressed(FIXTURES / "heads.npz", **arrays)


SENTENCES = ["w1 w2 w3", "w4 great", "w5 w6 w7 awful w8 w9 w10 w11 w12 w13 w14 w15 w16 w17", "fine", "w1 w19"]


def write_sentences():
    """The small BERT with every kind of module behind it: files of sentence-transformers and embeddings."""
    import sentence_transformers
    from safetensors.numpy import load_file
    from sentence_transformers.sentence_transformer import modules

    from tests.train.tiny_encoder import _tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        torch_model("bert").save_pretrained(folder / "bert")
        (folder / "bert" / "tokenizer.json").write_text(json.dumps(_tokenizer()))
        model = sentence_transformers.SentenceTransformer(
            modules=[
                modules.Transformer(str(folder / "bert"), max_seq_length=12),
                modules.Pooling(16, ("mean", "cls", "max")),
                modules.Dense(48, 8),
                modules.Normalize(),
            ],
            prompts={"query": "w18 ", "document": ""},
            default_prompt_name="query",
            device="cpu",
        )
        model.save(str(folder / "saved"))
        texts = {
            f"files/{path.relative_to(folder / 'saved')}": path.read_text()
            for path in (folder / "saved").rglob("*.json")
        }
        dense = load_file(folder / "saved" / "2_Dense" / "model.safetensors")
        np.savez_compressed(
            FIXTURES / "sentences.npz",
            default=model.encode(SENTENCES),
            document=model.encode(SENTENCES, prompt=""),
            **texts,
            **{f"dense/{key}": value for key, value in dense.items()},
        )


def write_real(folder):
    """A real model: token ids, last hidden states and embeddings of a few texts."""
    import sentence_transformers
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = tokenizer(TEXTS, padding=True, return_tensors="np")
    ids, mask = tokens["input_ids"], tokens["attention_mask"].astype(bool)
    pair = tokenizer([TEXTS[0]], [TEXTS[1]], return_tensors="np")
    np.savez_compressed(
        FIXTURES / "all-minilm-l6-v2.npz",
        texts=json.dumps(TEXTS),
        input_ids=ids.astype(np.int32),
        attention_mask=mask,
        last=torch_states(model, ids, mask)[-1][mask],
        pair_ids=pair["input_ids"].astype(np.int32),
        pair_types=pair["token_type_ids"].astype(np.int32),
    )
    sentences = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(
        [*TEXTS, TEXTS[1] * 40]
    )
    np.savez_compressed(FIXTURES / "all-minilm-l6-v2-sentences.npz", embeddings=sentences)


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    for family in CONFIGS:
        write_family(family)
    write_functions()
    write_heads()
    write_sentences()
    if len(sys.argv) > 1:
        write_real(sys.argv[1])
