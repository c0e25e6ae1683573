"""Linear attention on given features, and the engine for families whose features are made inside the kernel."""

from jaxattn.linear.attention import attend_features, linear_attention
from jaxattn.linear.implementation import IMPLEMENTATIONS
from jaxattn.linear.plan import FeatureFunctions, Fused
from jaxattn.linear.projection import Kind, Projection
from jaxattn.linear.segments import check_segments
from jaxattn.linear.state import (
    LinearAttentionState,
    linear_attention_init_state,
    linear_attention_step,
    step_features,
)

__all__ = [
    "IMPLEMENTATIONS",
    "FeatureFunctions",
    "Fused",
    "Kind",
    "LinearAttentionState",
    "Projection",
    "attend_features",
    "check_segments",
    "linear_attention",
    "linear_attention_init_state",
    "linear_attention_step",
    "step_features",
]
