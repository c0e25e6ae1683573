"""The names of the parameters of DeBERTa in a checkpoint."""

from jaxattn.encoders.bert.names import BERT_BLOCK, Names, block_tensors, embedding_tensors
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor, norm

BLOCK: Names = BERT_BLOCK | {
    f"attention.{part}": f"attention.self.{part}_proj" for part in ("query", "key", "value")
}
# Projections of the relative positions, where a model has its own, by the term that needs them.
OWN: dict[str, Names] = {
    "c2p": {"attention.position_key": "attention.self.pos_key_proj"},
    "p2c": {"attention.position_query": "attention.self.pos_query_proj"},
}


def deberta_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint."""
    table = embedding_tensors(config)
    relative, names = config.relative, BLOCK
    if relative is not None:
        table["relative.table"] = Tensor("encoder.rel_embeddings.weight")
        if relative.normalized:
            table |= norm("relative.norm", "encoder.LayerNorm")
        for term in () if relative.shared_projections else relative.terms:
            names = names | OWN[term]
    if config.convolution is not None:
        table["convolution.conv.kernel"] = Tensor("encoder.conv.conv.weight", "conv")
        table["convolution.conv.bias"] = Tensor("encoder.conv.conv.bias")
        table |= norm("convolution.norm", "encoder.conv.LayerNorm")
    return table | block_tensors(config, "encoder.layer.{}", names)


def unused_tensors(config: EncoderConfig) -> tuple[str, ...]:
    """Tensors that transformers saves with models that do not use them."""
    names = ("position_ids", "embeddings.position_embeddings.weight")
    # The normalisation of the relative positions exists also where there are none.
    return names if config.relative else (*names, "encoder.LayerNorm.weight", "encoder.LayerNorm.bias")
