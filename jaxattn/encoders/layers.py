"""Initial values and normalisation of pretrained encoders."""

from typing import Any

from flax import nnx

from jaxattn.encoders.config import EncoderConfig
from jaxattn.nn.layers import layer_norm

INIT = nnx.initializers.normal(0.02)


def make_norm(config: EncoderConfig, width: int | None = None, **options: Any) -> nnx.LayerNorm:
    """A normalisation with the config's epsilon, of width D by default; the options are those of `layer_norm`."""
    return layer_norm(
        width or config.hidden_size,
        epsilon=config.norm_eps,
        use_bias=config.layout.norm_bias,
        # E[(x − mean)²] rather than E[x²] − mean²: in float32 the latter loses digits where means are large.
        use_fast_variance=False,
        **options,
    )
