"""BERT, RoBERTa (with XLM-R, CamemBERT, BERTweet) and DistilBERT: settings and names of tensors."""

from collections.abc import Mapping
from typing import Any

from jaxattn.encoders.config import EncoderConfig, setting
from jaxattn.encoders.layout import Tensor, linear, norm


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


def bert_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """Our parameters' places in a checkpoint of BERT or RoBERTa."""
    table = {
        "embeddings.word": Tensor("embeddings.word_embeddings.weight"),
        "embeddings.position": Tensor("embeddings.position_embeddings.weight"),
        **norm("embeddings.norm", "embeddings.LayerNorm"),
    }
    if config.type_vocab_size:
        table["embeddings.token_type"] = Tensor("embeddings.token_type_embeddings.weight")
    for layer in range(config.num_layers):
        table |= block_tensors(f"blocks.{layer}", f"encoder.layer.{layer}", ("query", "key", "value"))
    return table


def block_tensors(ours: str, theirs: str, projections: tuple[str, str, str]) -> dict[str, Tensor]:
    """One block, with the names that BERT gave the parts."""
    table: dict[str, Tensor] = {}
    for name, projection in zip(("query", "key", "value"), projections, strict=True):
        table |= linear(f"{ours}.attention.{name}", f"{theirs}.attention.self.{projection}")
    return {
        **table,
        **linear(f"{ours}.attention.out", f"{theirs}.attention.output.dense", input_axes=2),
        **norm(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm"),
        **linear(f"{ours}.mlp.up", f"{theirs}.intermediate.dense"),
        **linear(f"{ours}.mlp.down", f"{theirs}.output.dense"),
        **norm(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm"),
    }


def distilbert_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """Our parameters' places in a checkpoint of DistilBERT."""
    table = {
        "embeddings.word": Tensor("embeddings.word_embeddings.weight"),
        "embeddings.position": Tensor("embeddings.position_embeddings.weight"),
        **norm("embeddings.norm", "embeddings.LayerNorm"),
    }
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.layer.{layer}"
        table |= {
            **linear(f"{ours}.attention.query", f"{theirs}.attention.q_lin"),
            **linear(f"{ours}.attention.key", f"{theirs}.attention.k_lin"),
            **linear(f"{ours}.attention.value", f"{theirs}.attention.v_lin"),
            **linear(f"{ours}.attention.out", f"{theirs}.attention.out_lin", input_axes=2),
            **norm(f"{ours}.attention_norm", f"{theirs}.sa_layer_norm"),
            **linear(f"{ours}.mlp.up", f"{theirs}.ffn.lin1"),
            **linear(f"{ours}.mlp.down", f"{theirs}.ffn.lin2"),
            **norm(f"{ours}.mlp_norm", f"{theirs}.output_layer_norm"),
        }
    return table
