"""The names of the parameters of BERT, RoBERTa and DistilBERT in a checkpoint."""

from collections.abc import Mapping

from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor, linear, norm

BERT_BLOCK = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
DISTILBERT_BLOCK = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "mlp.up": "ffn.lin1",
    "mlp.down": "ffn.lin2",
    "mlp_norm": "output_layer_norm",
}


def bert_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint of BERT or RoBERTa."""
    return embedding_tensors(config) | block_tensors(config, "encoder.layer", BERT_BLOCK)


def distilbert_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint of DistilBERT."""
    return embedding_tensors(config) | block_tensors(config, "transformer.layer", DISTILBERT_BLOCK)


def embedding_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The embeddings' parameters, with BERT's names; tables that the config does not have are left out."""
    table = {
        "embeddings.word": Tensor("embeddings.word_embeddings.weight"),
        **norm("embeddings.norm", "embeddings.LayerNorm"),
    }
    if config.position_rows:
        table["embeddings.position"] = Tensor("embeddings.position_embeddings.weight")
    if config.type_vocab_size:
        table["embeddings.token_type"] = Tensor("embeddings.token_type_embeddings.weight")
    return table


def block_tensors(config: EncoderConfig, prefix: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """All blocks' parameters; `names` maps the parts of our blocks to theirs."""
    table: dict[str, Tensor] = {}
    for layer in range(config.num_layers):
        for part, name in names.items():
            ours, theirs = f"blocks.{layer}.{part}", f"{prefix}.{layer}.{name}"
            if part.endswith("norm"):
                table |= norm(ours, theirs)
            else:
                table |= linear(ours, theirs, input_axes=2 if part == "attention.out" else 1)
    return table
