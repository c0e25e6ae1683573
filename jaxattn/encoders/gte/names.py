"""The names of the parameters of GTE in a checkpoint."""

from jaxattn.encoders.bert.names import Names, block_tensors, embedding_tensors, joint
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor

BLOCK: Names = {
    **joint(("attention.query", "attention.key", "attention.value"), "attention.qkv_proj"),
    "attention.out": "attention.o_proj",
    "attention_norm": "attn_ln",
    # The second half is the one that goes through the activation.
    **joint(("mlp.gate", "mlp.up"), "mlp.up_gate_proj"),
    "mlp.down": "mlp.down_proj",
    "mlp_norm": "mlp_ln",
}


def gte_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint."""
    return embedding_tensors(config) | block_tensors(config, "encoder.layer.{}", BLOCK)
