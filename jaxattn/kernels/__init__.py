"""Pure attention kernels on arrays; they know nothing of Flax, tasks or files."""

from jaxattn.kernels._decode import DotProductAttentionState as DotProductAttentionState
from jaxattn.kernels._decode import dot_product_attention_init_state as dot_product_attention_init_state
from jaxattn.kernels._decode import dot_product_attention_step as dot_product_attention_step
from jaxattn.kernels.convolution import CrossCorrelationState as CrossCorrelationState
from jaxattn.kernels.convolution import cross_correlation as cross_correlation
from jaxattn.kernels.convolution import cross_correlation_attention as cross_correlation_attention
from jaxattn.kernels.convolution import cross_correlation_init_state as cross_correlation_init_state
from jaxattn.kernels.convolution import cross_correlation_step as cross_correlation_step
from jaxattn.kernels.dot_product import dot_product_attention as dot_product_attention
from jaxattn.kernels.energy import energy_gate as energy_gate
from jaxattn.kernels.energy import energy_gate_init_state as energy_gate_init_state
from jaxattn.kernels.energy import energy_gate_step as energy_gate_step
from jaxattn.kernels.energy_attention import EnergyGatedAttentionState as EnergyGatedAttentionState
from jaxattn.kernels.energy_attention import energy_gated_attention as energy_gated_attention
from jaxattn.kernels.energy_attention import (
    energy_gated_attention_init_state as energy_gated_attention_init_state,
)
from jaxattn.kernels.energy_attention import energy_gated_attention_step as energy_gated_attention_step
from jaxattn.kernels.padding import padding_key_bias as padding_key_bias
