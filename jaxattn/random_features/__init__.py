"""Random features: any component function on any weight matrix, and attention by them."""

from jaxattn.random_features.attention import (
    random_feature_attention,
    random_feature_attention_init_state,
    random_feature_attention_step,
)
from jaxattn.random_features.components import COMPONENTS, Component
from jaxattn.random_features.diagnosis.diagnose import Diagnosis, diagnose
from jaxattn.random_features.feature_map import FeatureMap
from jaxattn.random_features.moments import Moments
from jaxattn.random_features.weights import WEIGHTS
from jaxattn.random_features.weights.base import Weights

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
