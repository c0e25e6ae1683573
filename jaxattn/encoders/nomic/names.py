"""The names of the parameters of Nomic-BERT in a checkpoint."""

from jaxattn.encoders.bert.names import Names, block_tensors, embedding_tensors, joint
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor

BLOCK: Names = {
    **joint(("attention.query", "attention.key", "attention.value"), "attn.Wqkv"),
    "attention.out": "attn.out_proj",
    "attention_norm": "norm1",
    "mlp.up": "mlp.fc12",
    "mlp.gate": "mlp.fc11",
    "mlp.down": "mlp.fc2",
    "mlp_norm": "norm2",
}


def nomic_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint."""
    embeddings = embedding_tensors(config, norm_name="emb_ln")
    return embeddings | block_tensors(config, "encoder.layers.{}", BLOCK)
