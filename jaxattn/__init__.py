"""Structured attention for JAX: kernels that compose, with Flax modules on top.

The functions here are pure and need only JAX. The sub-packages `jaxattn.nn` (the same mechanisms as Flax NNX
modules), `jaxattn.models`, `jaxattn.encoders` (pretrained text encoders) and `jaxattn.testing` (checks for kernels
of your own) are imported on first use.
"""

import importlib
from typing import Any

from jaxattn.convolution import multi_scale_conv
from jaxattn.core.decode import replace_rows
from jaxattn.core.padding import padding_key_bias
from jaxattn.energy import (
    energy_gate,
    energy_gate_init_state,
    energy_gate_step,
    energy_gated_attention,
    energy_gated_attention_init_state,
    energy_gated_attention_step,
)
from jaxattn.lags import (
    cross_correlation,
    cross_correlation_attention,
    cross_correlation_attention_init_state,
    cross_correlation_attention_step,
)
from jaxattn.linear import linear_attention, linear_attention_init_state, linear_attention_step
from jaxattn.positions import morlet_encoding, morlet_init, morlet_window, rotary, sinusoidal_encoding
from jaxattn.random_features import (
    COMPONENTS,
    WEIGHTS,
    Diagnosis,
    FeatureMap,
    diagnose,
    random_feature_attention,
    random_feature_attention_init_state,
    random_feature_attention_step,
)
from jaxattn.recency import (
    alibi_key_bias,
    alibi_slopes,
    forget_key_bias,
    forget_key_bias_init_state,
    forget_key_bias_step,
)
from jaxattn.softmax import (
    dot_product_attention,
    dot_product_attention_init_state,
    dot_product_attention_step,
)
from jaxattn.tree import (
    Tree,
    TreeShape,
    hierarchical_attention,
    hierarchical_attention_init_state,
    hierarchical_attention_step,
    hierarchical_energy,
    hierarchical_weights,
)

__version__ = "0.1.0"

_SUBPACKAGES = ("encoders", "models", "nn", "testing")


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"jaxattn.{name}")
    raise AttributeError(f"module 'jaxattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})


__all__ = [
    "COMPONENTS",
    "WEIGHTS",
    "Diagnosis",
    "FeatureMap",
    "Tree",
    "TreeShape",
    "alibi_key_bias",
    "alibi_slopes",
    "cross_correlation",
    "cross_correlation_attention",
    "cross_correlation_attention_init_state",
    "cross_correlation_attention_step",
    "diagnose",
    "dot_product_attention",
    "dot_product_attention_init_state",
    "dot_product_attention_step",
    "encoders",
    "energy_gate",
    "energy_gate_init_state",
    "energy_gate_step",
    "energy_gated_attention",
    "energy_gated_attention_init_state",
    "energy_gated_attention_step",
    "forget_key_bias",
    "forget_key_bias_init_state",
    "forget_key_bias_step",
    "hierarchical_attention",
    "hierarchical_energy",
    "hierarchical_attention_init_state",
    "hierarchical_attention_step",
    "hierarchical_weights",
    "linear_attention",
    "linear_attention_init_state",
    "linear_attention_step",
    "models",
    "morlet_encoding",
    "morlet_init",
    "morlet_window",
    "multi_scale_conv",
    "nn",
    "padding_key_bias",
    "positions",
    "random_feature_attention",
    "random_feature_attention_init_state",
    "random_feature_attention_step",
    "replace_rows",
    "rotary",
    "sinusoidal_encoding",
    "testing",
]
