"""The names of the parameters of ModernBERT in a checkpoint."""

from jaxattn.encoders.bert.names import Names, block_tensors, joint
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor, norm

BLOCK: Names = {
    **joint(("attention.query", "attention.key", "attention.value"), "attn.Wqkv"),
    "attention.out": "attn.Wo",
    "attention_norm": "attn_norm",
    **joint(("mlp.up", "mlp.gate"), "mlp.Wi"),
    "mlp.down": "mlp.Wo",
    "mlp_norm": "mlp_norm",
}


def modernbert_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint."""
    offset = {"bias": config.layout.norm_bias}
    return {
        "embeddings.word": Tensor("embeddings.tok_embeddings.weight"),
        **norm("embeddings.norm", "embeddings.norm", **offset),
        **norm("norm", "final_norm", **offset),
        **block_tensors(config, "layers.{}", BLOCK),
    }
