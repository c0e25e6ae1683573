"""Blocks of pretrained encoders: normalised after each branch as in BERT, or before as in ModernBERT."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxattn.encoders.activations import ACTIVATIONS
from jaxattn.encoders.attention import DisentangledAttention, WindowedAttention
from jaxattn.encoders.config import EncoderConfig
from jaxattn.nn.attention import Attention

INIT = nnx.initializers.normal(0.02)


def make_norm(config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A normalisation of width D with the config's epsilon."""
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.norm_eps,
        use_bias=config.modern is None or config.modern.norm_bias,
        # E[(x − mean)²] rather than E[x²] − mean²: in float32 the latter loses digits where means are large.
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_metadata={"axes": ("embed",)},
        bias_metadata={"axes": ("embed",)},
        rngs=rngs,
    )


def make_attention(config: EncoderConfig, layer: int, **options: Any) -> Attention:
    """The attention of one layer, with softmax inside."""
    options |= {"kernel_init": INIT, "out_init": INIT}
    heads, features = config.num_heads, config.hidden_size
    if config.relative is not None:
        return DisentangledAttention(heads, features, relative=config.relative, **options)
    if config.modern is None:
        return Attention(heads, features, **options)
    options |= {"rotary_base": config.modern.rotary_bases[layer], "use_bias": config.modern.attention_bias}
    window = config.modern.windows[layer]
    if window is None:
        return Attention(heads, features, **options)
    return WindowedAttention(heads, features, window=window, **options)


class MLP(nnx.Module):
    """down(f(up(x))), or down(f(up(x)) · gate(x)) in ModernBERT, with the config's activation f."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        def linear(width_in: int, width_out: int, axes: tuple[str, str]) -> nnx.Linear:
            return nnx.Linear(
                width_in,
                width_out,
                use_bias=config.modern is None or config.modern.mlp_bias,
                kernel_init=INIT,
                kernel_metadata={"axes": axes},
                bias_metadata={"axes": axes[1:]},
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.hidden_act = config.hidden_act
        features, hidden = config.hidden_size, config.intermediate_size
        self.up = linear(features, hidden, ("embed", "mlp"))
        self.gate = nnx.data(None if config.modern is None else linear(features, hidden, ("embed", "mlp")))
        self.down = linear(hidden, features, ("mlp", "embed"))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Applies the layers to the last axis."""
        hidden = ACTIVATIONS[self.hidden_act](self.up(x))
        return self.down(hidden if self.gate is None else hidden * self.gate(x))


class EncoderBlock(nnx.Module):
    """Attention and MLP, each a branch with dropout.

    Post-norm: norm(x + attention(x)), then the same with the MLP. Pre-norm (ModernBERT): x + attention(norm(x)),
    where the first block has no normalisation before its attention.

    Args:
        config: sizes and choices.
        layer: number of the block.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.
    """

    def __init__(self, config: EncoderConfig, layer: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.pre_norm = config.modern is not None
        self.attention = make_attention(config, layer, **options)
        bare = self.pre_norm and layer == 0
        self.attention_norm = nnx.data(None if bare else make_norm(config, **options))
        self.mlp = MLP(config, **options)
        self.mlp_norm = make_norm(config, **options)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        *,
        token_mask: Bool[Array, "B L"],
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
        **attention: Any,
    ) -> Float[Array, "B L D"]:
        """Applies the block; `attention` goes to the attention's call."""
        drop: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        norm = self.attention_norm or _identity
        if self.pre_norm:
            x = x + self.dropout(self.attention(norm(x), token_mask=token_mask, **attention), **drop)
            return x + self.dropout(self.mlp(self.mlp_norm(x)), **drop)
        x = norm(x + self.dropout(self.attention(x, token_mask=token_mask, **attention), **drop))
        return self.mlp_norm(x + self.dropout(self.mlp(x), **drop))


def _identity(x: Array) -> Array:
    return x


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
            kernel_metadata={"axes": (None, None, "embed")},
            bias_metadata={"axes": ("embed",)},
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = make_norm(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        y: Float[Array, "B L D"],
        *,
        token_mask: Bool[Array, "B L"],
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B L D"]:
        """Padding is zero on both sides, so that no real token sees it."""
        near = self.conv(jnp.where(token_mask[..., None], x, 0))
        near = self.dropout(near, deterministic=deterministic, rngs=rngs)
        return jnp.where(token_mask[..., None], self.norm(y + ACTIVATIONS[self.activation](near)), 0)
