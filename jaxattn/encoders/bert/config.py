"""The settings of BERT, RoBERTa, DistilBERT, ELECTRA and ALBERT."""

from collections.abc import Mapping
from typing import Any

from jaxattn.encoders.settings import require, setting


def read_bert(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `EncoderConfig`."""
    rows = setting(source, "max_position_embeddings", 512)
    dropout = setting(source, "hidden_dropout_prob", 0.1)
    return {
        "vocab_size": setting(source, "vocab_size", 30522),
        "hidden_size": setting(source, "hidden_size", 768),
        "num_layers": setting(source, "num_hidden_layers", 12),
        "num_heads": setting(source, "num_attention_heads", 12),
        "intermediate_size": setting(source, "intermediate_size", 3072),
        "max_length": rows,
        "position_rows": rows,
        "pad_token_id": setting(source, "pad_token_id", 0),
        "hidden_act": setting(source, "hidden_act", "gelu"),
        "norm_eps": setting(source, "layer_norm_eps", 1e-12),
        "dropout": dropout,
        "embedding_dropout": dropout,
        "type_vocab_size": setting(source, "type_vocab_size", 2),
    }


def read_roberta(source: Mapping[str, Any]) -> dict[str, Any]:
    """As for BERT, with positions that start after the padding id."""
    fields = read_bert(source)
    vocab = 50265 if source["model_type"] == "roberta" else 30522
    padding = setting(source, "pad_token_id", 1)
    return fields | {
        "vocab_size": setting(source, "vocab_size", vocab),
        "pad_token_id": padding,
        "max_length": fields["position_rows"] - padding - 1,
        "positions_skip_padding": True,
    }


def read_distilbert(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `EncoderConfig`; sinusoidal positions are stored as a table like learned ones."""
    rows = setting(source, "max_position_embeddings", 512)
    dropout = setting(source, "dropout", 0.1)
    return {
        "vocab_size": setting(source, "vocab_size", 30522),
        "hidden_size": setting(source, "dim", 768),
        "num_layers": setting(source, "n_layers", 6),
        "num_heads": setting(source, "n_heads", 12),
        "intermediate_size": setting(source, "hidden_dim", 3072),
        "max_length": rows,
        "position_rows": rows,
        "pad_token_id": setting(source, "pad_token_id", 0),
        "hidden_act": setting(source, "activation", "gelu"),
        "norm_eps": 1e-12,
        "dropout": dropout,
        "embedding_dropout": dropout,
    }


def read_electra(source: Mapping[str, Any]) -> dict[str, Any]:
    """As for BERT, with an embedding that may be narrower."""
    small = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    fields = read_bert(small | _given(source))
    width = setting(source, "embedding_size", 128)
    return fields | {"embedding_size": 0 if width == fields["hidden_size"] else width}


def read_albert(source: Mapping[str, Any]) -> dict[str, Any]:
    """As for BERT, with a projected embedding, and layers that share the weights of a block a group."""
    large = {"vocab_size": 30000, "hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16384}
    fields = read_bert(large | {"hidden_act": "gelu_new", "hidden_dropout_prob": 0.0} | _given(source))
    require(source, {"inner_group_num": (1,)})
    layers, groups = fields["num_layers"], setting(source, "num_hidden_groups", 1)
    if not 1 <= groups <= layers:
        raise ValueError(f"num_hidden_groups in config.json must be from 1 to {layers}; got {groups}.")
    return fields | {
        "embedding_size": setting(source, "embedding_size", 128),
        "shared": tuple(int(layer / (layers / groups)) for layer in range(layers)),
    }


def _given(source: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in source.items() if value is not None}
