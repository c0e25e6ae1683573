"""The convolution beside the first block of some DeBERTa models."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxattn.core.parameters import axis_names
from jaxattn.encoders.config import ACTIVATIONS, EncoderConfig
from jaxattn.encoders.layers import make_norm


class ConvolutionBranch(nnx.Module):
    """norm(y + f(convolution(x))) beside the first block, from the embedding x and the block's output y (DeBERTa)."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        if config.convolution is None:
            raise ValueError("convolution must be given in the config; got None.")
        self.activation = config.convolution.activation
        self.conv = nnx.Conv(
            config.hidden_size,
            config.hidden_size,
            (config.convolution.kernel_size,),
            feature_group_count=config.convolution.groups,
            kernel_metadata=axis_names(None, None, "embed"),
            bias_metadata=axis_names("embed"),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = make_norm(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, deterministic=True)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        y: Float[Array, "B L D"],
        *,
        token_mask: Bool[Array, "B L"],
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B L D"]:
        """Padding is zero on both sides, so that no real token sees it."""
        near = self.conv(jnp.where(token_mask[..., None], x, 0))
        near = self.dropout(near, deterministic=deterministic, rngs=rngs)
        return jnp.where(token_mask[..., None], self.norm(y + ACTIVATIONS[self.activation](near)), 0)
