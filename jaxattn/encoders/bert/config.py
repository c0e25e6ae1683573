"""The settings of BERT, RoBERTa and DistilBERT."""

from collections.abc import Mapping
from typing import Any

from jaxattn.encoders.settings import setting


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
