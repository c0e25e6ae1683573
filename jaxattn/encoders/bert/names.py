"""The names of the parameters of BERT, its relatives with the same blocks, and all blocks in a checkpoint."""

from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor, linear, norm

# From the parts of our blocks to theirs; (name, part, parts) where a tensor holds several.
Names = dict[str, str | tuple[str, int, int]]

BERT_BLOCK: Names = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
DISTILBERT_BLOCK: Names = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "mlp.up": "ffn.lin1",
    "mlp.down": "ffn.lin2",
    "mlp_norm": "output_layer_norm",
}


ALBERT_BLOCK: Names = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.out": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "mlp.up": "ffn",
    "mlp.down": "ffn_output",
    "mlp_norm": "full_layer_layer_norm",
}


def bert_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint of BERT or RoBERTa."""
    return embedding_tensors(config) | block_tensors(config, "encoder.layer.{}", BERT_BLOCK)


def distilbert_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint of DistilBERT."""
    return embedding_tensors(config) | block_tensors(config, "transformer.layer.{}", DISTILBERT_BLOCK)


def electra_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint of ELECTRA."""
    return bert_tensors(config) | _projection(config, "embeddings_project")


def albert_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint of ALBERT."""
    projection = _projection(config, "encoder.embedding_hidden_mapping_in")
    prefix = "encoder.albert_layer_groups.{}.albert_layers.0"
    return embedding_tensors(config) | projection | block_tensors(config, prefix, ALBERT_BLOCK)


def _projection(config: EncoderConfig, name: str) -> dict[str, Tensor]:
    return linear("embeddings.project", name) if config.embedding_size else {}


def embedding_tensors(config: EncoderConfig, *, norm_name: str = "embeddings.LayerNorm") -> dict[str, Tensor]:
    """The embeddings' parameters, with BERT's names; tables that the config does not have are left out."""
    table = {
        "embeddings.word": Tensor("embeddings.word_embeddings.weight"),
        **norm("embeddings.norm", norm_name),
    }
    if config.position_rows:
        table["embeddings.position"] = Tensor("embeddings.position_embeddings.weight")
    if config.type_vocab_size:
        table["embeddings.token_type"] = Tensor("embeddings.token_type_embeddings.weight")
    return table


def block_tensors(config: EncoderConfig, prefix: str, names: Names) -> dict[str, Tensor]:
    """All blocks' parameters; `prefix` precedes the names of block {}."""
    layout = config.layout
    table: dict[str, Tensor] = {}
    for block in range(config.num_blocks):
        for part, place in names.items():
            name, number, parts = (place, 0, 1) if isinstance(place, str) else place
            ours, theirs = f"blocks.{block}.{part}", f"{prefix.format(block)}.{name}"
            if part.endswith("norm"):
                if not (part == "attention_norm" and layout.pre_norm and block == 0):
                    table |= norm(ours, theirs, bias=layout.norm_bias)
                continue
            bias = layout.attention_bias if part.startswith("attention") else layout.mlp_bias
            table |= linear(
                ours,
                theirs,
                bias=layout.mlp_out_bias if part == "mlp.down" else bias,
                input_axes=2 if part == "attention.out" else 1,
                part=number,
                parts=parts,
            )
    return table


def joint(names: tuple[str, ...], tensor: str) -> Names:
    """Parts of ours that are equal blocks of rows of one tensor, in order."""
    return {name: (tensor, number, len(names)) for number, name in enumerate(names)}
