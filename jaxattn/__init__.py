"""Structured attention for JAX: kernels that compose, with Flax modules on top.

The functions here are pure; `jaxattn.nn` holds the same as Flax NNX modules, `jaxattn.models` whole models and
`jaxattn.testing` the checks to run on kernels of your own.
"""

from jaxattn import features, kernels, models, nn, positions, testing
from jaxattn.features import (
    COMPONENTS,
    WEIGHTS,
    Diagnosis,
    FeatureMap,
    diagnose,
    random_feature_attention,
    random_feature_attention_init_state,
    random_feature_attention_step,
)
from jaxattn.kernels import (
    cross_correlation,
    cross_correlation_attention,
    cross_correlation_init_state,
    cross_correlation_step,
    dot_product_attention,
    dot_product_attention_init_state,
    dot_product_attention_step,
    energy_gate,
    energy_gate_init_state,
    energy_gate_step,
    energy_gated_attention,
    energy_gated_attention_init_state,
    energy_gated_attention_step,
    linear_attention,
    linear_attention_init_state,
    linear_attention_step,
    padding_key_bias,
)
from jaxattn.positions import morlet_encoding, morlet_init, morlet_window, rotary, sinusoidal_encoding

__version__ = "0.1.0"

__all__ = [
    "COMPONENTS",
    "WEIGHTS",
    "Diagnosis",
    "FeatureMap",
    "cross_correlation",
    "cross_correlation_attention",
    "cross_correlation_init_state",
    "cross_correlation_step",
    "diagnose",
    "dot_product_attention",
    "dot_product_attention_init_state",
    "dot_product_attention_step",
    "energy_gate",
    "energy_gate_init_state",
    "energy_gate_step",
    "energy_gated_attention",
    "energy_gated_attention_init_state",
    "energy_gated_attention_step",
    "features",
    "kernels",
    "linear_attention",
    "linear_attention_init_state",
    "linear_attention_step",
    "models",
    "morlet_encoding",
    "morlet_init",
    "morlet_window",
    "nn",
    "padding_key_bias",
    "positions",
    "random_feature_attention",
    "random_feature_attention_init_state",
    "random_feature_attention_step",
    "rotary",
    "sinusoidal_encoding",
    "testing",
]
