"""Pure attention kernels on arrays; they know nothing of Flax, tasks or files."""

from jaxattn.kernels._decode import DotProductAttentionState as DotProductAttentionState
from jaxattn.kernels._decode import dot_product_attention_init_state as dot_product_attention_init_state
from jaxattn.kernels._decode import dot_product_attention_step as dot_product_attention_step
from jaxattn.kernels.dot_product import dot_product_attention as dot_product_attention
from jaxattn.kernels.energy import energy_gate as energy_gate
from jaxattn.kernels.energy import energy_gate_init_state as energy_gate_init_state
from jaxattn.kernels.energy import energy_gate_step as energy_gate_step
from jaxattn.kernels.padding import padding_key_bias as padding_key_bias
