"""Cross-correlation attention: scores over several lags."""

from jaxattn.lags.attention import cross_correlation_attention
from jaxattn.lags.scores import cross_correlation
from jaxattn.lags.state import (
    CrossCorrelationState,
    cross_correlation_attention_init_state,
    cross_correlation_attention_step,
)

__all__ = [
    "CrossCorrelationState",
    "cross_correlation",
    "cross_correlation_attention",
    "cross_correlation_attention_init_state",
    "cross_correlation_attention_step",
]
