"""Key biases that favour recent tokens: ALiBi and the forgetting gate."""

from jaxattn.recency.alibi import alibi_key_bias, alibi_slopes
from jaxattn.recency.forget import forget_key_bias, forget_key_bias_init_state, forget_key_bias_step

__all__ = [
    "alibi_key_bias",
    "alibi_slopes",
    "forget_key_bias",
    "forget_key_bias_init_state",
    "forget_key_bias_step",
]
