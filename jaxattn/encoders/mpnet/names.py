"""The names of the parameters of MPNet in a checkpoint."""

from jaxattn.encoders.bert.names import BERT_BLOCK, Names, block_tensors, embedding_tensors
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor

BLOCK: Names = BERT_BLOCK | {
    "attention.query": "attention.attn.q",
    "attention.key": "attention.attn.k",
    "attention.value": "attention.attn.v",
    "attention.out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}


def mpnet_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint."""
    bias = {"relative.table": Tensor("encoder.relative_attention_bias.weight")}
    return embedding_tensors(config) | bias | block_tensors(config, "encoder.layer.{}", BLOCK)
