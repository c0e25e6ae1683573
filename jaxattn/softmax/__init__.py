"""Softmax attention: one function, several backends, and its key-value cache."""

from jaxattn.softmax.attention import dot_product_attention
from jaxattn.softmax.cache import (
    DotProductAttentionState,
    dot_product_attention_init_state,
    dot_product_attention_step,
)
from jaxattn.softmax.reach import check_window

__all__ = [
    "DotProductAttentionState",
    "check_window",
    "dot_product_attention",
    "dot_product_attention_init_state",
    "dot_product_attention_step",
]
