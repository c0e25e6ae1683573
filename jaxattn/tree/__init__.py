"""Hierarchical attention over trees."""

from jaxattn.tree.attention import hierarchical_attention, hierarchical_energy, hierarchical_weights
from jaxattn.tree.shape import TreeShape
from jaxattn.tree.state import (
    HierarchicalState,
    hierarchical_attention_init_state,
    hierarchical_attention_step,
)
from jaxattn.tree.tree import Tree

__all__ = [
    "HierarchicalState",
    "Tree",
    "TreeShape",
    "hierarchical_attention",
    "hierarchical_attention_init_state",
    "hierarchical_attention_step",
    "hierarchical_energy",
    "hierarchical_weights",
]
