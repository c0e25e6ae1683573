"""Blocks of pretrained encoders: post-norm as in BERT, or pre-norm as in ModernBERT."""

from typing import Any

from jaxattn.encoders.biased import BiasedAttention
from jaxattn.encoders.config import ACTIVATIONS, EncoderConfig
from jaxattn.encoders.deberta.attention import DisentangledAttention
from jaxattn.encoders.layers import INIT, make_norm
from jaxattn.encoders.modernbert.attention import WindowedAttention
from jaxattn.nn.attention import Attention
from jaxattn.nn.blocks import MLP, Block


def make_block(config: EncoderConfig, layer: int, **options: Any) -> Block:
    """A block; `options` are dtype, param_dtype and rngs. The first pre-norm one has no norm before its attention."""
    layout = config.layout
    return Block(
        attention=make_attention(config, layer, **options),
        attention_norm=None if layout.pre_norm and layer == 0 else make_norm(config, **options),
        mlp=MLP(
            config.hidden_size,
            config.intermediate_size,
            activation=ACTIVATIONS[config.hidden_act],
            gated=layout.gated,
            use_bias=layout.mlp_bias,
            out_bias=layout.mlp_out_bias,
            kernel_init=INIT,
            out_init=INIT,
            **options,
        ),
        mlp_norm=make_norm(config, **options),
        pre_norm=layout.pre_norm,
        dropout=config.dropout,
    )


def make_attention(config: EncoderConfig, layer: int, **options: Any) -> Attention:
    """The attention of one layer, with softmax inside."""
    layout = config.layout
    options |= {"kernel_init": INIT, "out_init": INIT, "use_bias": layout.attention_bias}
    heads, features = config.num_heads, config.hidden_size
    if config.relative is not None:
        return DisentangledAttention(heads, features, relative=config.relative, **options)
    if config.pair_bias:
        return BiasedAttention(heads, features, **options)
    if layout.rotary:
        options["rotary"] = layout.rotary[layer]
    if layout.windows and (window := layout.windows[layer]) is not None:
        return WindowedAttention(heads, features, window=window, **options)
    return Attention(heads, features, **options)
