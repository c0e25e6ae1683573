"""Pure attention kernels on arrays; they know nothing of Flax, tasks or files."""

from jaxattn.kernels._decode import (
    DotProductAttentionState,
    dot_product_attention_init_state,
    dot_product_attention_step,
)
from jaxattn.kernels._hierarchical_decode import (
    HierarchicalState,
    hierarchical_init_state,
    hierarchical_step,
)
from jaxattn.kernels._linear_decode import (
    LinearAttentionState,
    linear_attention_init_state,
    linear_attention_step,
)
from jaxattn.kernels.convolution import (
    CrossCorrelationState,
    cross_correlation,
    cross_correlation_attention,
    cross_correlation_init_state,
    cross_correlation_step,
)
from jaxattn.kernels.dot_product import dot_product_attention
from jaxattn.kernels.energy import energy_gate, energy_gate_init_state, energy_gate_step
from jaxattn.kernels.energy_attention import (
    EnergyGatedAttentionState,
    energy_gated_attention,
    energy_gated_attention_init_state,
    energy_gated_attention_step,
)
from jaxattn.kernels.hierarchical import (
    hierarchical_attention,
    hierarchical_energy,
    hierarchical_weights,
)
from jaxattn.kernels.linear import linear_attention
from jaxattn.kernels.multi_scale_conv import multi_scale_conv
from jaxattn.kernels.padding import padding_key_bias
from jaxattn.kernels.tree import Tree, TreeShape

__all__ = [
    "CrossCorrelationState",
    "DotProductAttentionState",
    "EnergyGatedAttentionState",
    "HierarchicalState",
    "LinearAttentionState",
    "Tree",
    "TreeShape",
    "cross_correlation",
    "cross_correlation_attention",
    "cross_correlation_init_state",
    "cross_correlation_step",
    "dot_product_attention",
    "dot_product_attention_init_state",
    "dot_product_attention_step",
    "energy_gate",
    "energy_gate_init_state",
    "energy_gate_step",
    "energy_gated_attention",
    "energy_gated_attention_init_state",
    "energy_gated_attention_step",
    "hierarchical_attention",
    "hierarchical_energy",
    "hierarchical_init_state",
    "hierarchical_step",
    "hierarchical_weights",
    "linear_attention",
    "linear_attention_init_state",
    "linear_attention_step",
    "multi_scale_conv",
    "padding_key_bias",
]
