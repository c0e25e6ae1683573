"""The names of the parameters of ModernBERT in a checkpoint."""

from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor, linear, norm


def modernbert_tensors(config: EncoderConfig) -> dict[str, Tensor]:
    """The parameters' places in a checkpoint."""
    modern = config.modern
    if modern is None:
        raise ValueError("modern must be given for the model_type 'modernbert'; got None.")
    offset = {"bias": modern.norm_bias}
    table = {
        "embeddings.word": Tensor("embeddings.tok_embeddings.weight"),
        **norm("embeddings.norm", "embeddings.norm", **offset),
        **norm("norm", "final_norm", **offset),
    }
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"layers.{layer}"
        for part, name in enumerate(("query", "key", "value")):
            joint = f"{theirs}.attn.Wqkv"
            bias = modern.attention_bias
            table |= linear(f"{ours}.attention.{name}", joint, bias=bias, part=part, parts=3)
        table |= linear(
            f"{ours}.attention.out", f"{theirs}.attn.Wo", bias=modern.attention_bias, input_axes=2
        )
        if layer > 0:
            table |= norm(f"{ours}.attention_norm", f"{theirs}.attn_norm", **offset)
        for part, name in enumerate(("up", "gate")):
            table |= linear(
                f"{ours}.mlp.{name}", f"{theirs}.mlp.Wi", bias=modern.mlp_bias, part=part, parts=2
            )
        table |= linear(f"{ours}.mlp.down", f"{theirs}.mlp.Wo", bias=modern.mlp_bias)
        table |= norm(f"{ours}.mlp_norm", f"{theirs}.mlp_norm", **offset)
    return table
