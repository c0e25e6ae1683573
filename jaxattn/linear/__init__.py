"""Linear attention on given features."""

from jaxattn.linear.attention import linear_attention
from jaxattn.linear.state import LinearAttentionState, linear_attention_init_state, linear_attention_step

__all__ = [
    "LinearAttentionState",
    "linear_attention",
    "linear_attention_init_state",
    "linear_attention_step",
]
