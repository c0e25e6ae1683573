"""Blocks of pretrained encoders: post-norm as in BERT, or pre-norm as in ModernBERT."""

from typing import Any

from jaxattn.encoders.config import ACTIVATIONS, EncoderConfig
from jaxattn.encoders.deberta.attention import DisentangledAttention
from jaxattn.encoders.layers import INIT, make_norm
from jaxattn.encoders.modernbert.attention import WindowedAttention
from jaxattn.nn.attention import Attention
from jaxattn.nn.blocks import MLP, Block


def make_block(config: EncoderConfig, layer: int, **options: Any) -> Block:
    """A block; `options` are dtype, param_dtype and rngs. ModernBERT's first has no norm before its attention."""
    modern = config.modern
    return Block(
        attention=make_attention(config, layer, **options),
        attention_norm=None if modern and layer == 0 else make_norm(config, **options),
        mlp=MLP(
            config.hidden_size,
            config.intermediate_size,
            activation=ACTIVATIONS[config.hidden_act],
            gated=modern is not None,
            use_bias=modern is None or modern.mlp_bias,
            kernel_init=INIT,
            out_init=INIT,
            **options,
        ),
        mlp_norm=make_norm(config, **options),
        pre_norm=modern is not None,
        dropout=config.dropout,
    )


def make_attention(config: EncoderConfig, layer: int, **options: Any) -> Attention:
    """The attention of one layer, with softmax inside."""
    options |= {"kernel_init": INIT, "out_init": INIT}
    heads, features = config.num_heads, config.hidden_size
    if config.relative is not None:
        return DisentangledAttention(heads, features, relative=config.relative, **options)
    if config.modern is None:
        return Attention(heads, features, **options)
    options |= {"rotary": config.modern.rotary[layer], "use_bias": config.modern.attention_bias}
    window = config.modern.windows[layer]
    if window is None:
        return Attention(heads, features, **options)
    return WindowedAttention(heads, features, window=window, **options)
