"""The names of the parameters of JinaBERT in a checkpoint."""

from jaxattn.encoders.bert.names import BERT_BLOCK, Names, block_tensors, embedding_tensors, joint
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor

GATED: Names = {
    **joint(("mlp.up", "mlp.gate"), "mlp.gated_layers"),
    "mlp.down": "mlp.wo",
    "mlp_norm": "mlp.layernorm",
}


def jina_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint."""
    block = BERT_BLOCK | GATED if config.layout.gated else BERT_BLOCK
    return embedding_tensors(config) | block_tensors(config, "encoder.layer.{}", block)
