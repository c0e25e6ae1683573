"""The energy gate, and attention gated by it."""

from jaxattn.energy.attention import energy_gated_attention
from jaxattn.energy.gate import energy_gate, energy_gate_init_state, energy_gate_step
from jaxattn.energy.state import (
    EnergyGatedAttentionState,
    energy_gated_attention_init_state,
    energy_gated_attention_step,
)

__all__ = [
    "EnergyGatedAttentionState",
    "energy_gate",
    "energy_gate_init_state",
    "energy_gate_step",
    "energy_gated_attention",
    "energy_gated_attention_init_state",
    "energy_gated_attention_step",
]
