"""Random features: any component function on any weight matrix, and attention by them."""

from jaxattn.features.attention import (
    random_feature_attention,
    random_feature_attention_init_state,
    random_feature_attention_step,
)
from jaxattn.features.components import COMPONENTS, Component
from jaxattn.features.diagnosis import Diagnosis, diagnose
from jaxattn.features.feature_map import FeatureMap
from jaxattn.features.moments import Moments
from jaxattn.features.weights import WEIGHTS
from jaxattn.features.weights.base import Weights

__all__ = [
    "COMPONENTS",
    "WEIGHTS",
    "Component",
    "Diagnosis",
    "FeatureMap",
    "Moments",
    "Weights",
    "diagnose",
    "random_feature_attention",
    "random_feature_attention_init_state",
    "random_feature_attention_step",
]
