"""Flax NNX modules: each holds parameters and calls kernels."""

from jaxattn.nn.attention import Attention
from jaxattn.nn.cross_correlation import CrossCorrelation
from jaxattn.nn.energy_gated import EnergyGated
from jaxattn.nn.heads import PoolingHead
from jaxattn.nn.hierarchical import Hierarchical
from jaxattn.nn.inceptive_head import InceptiveHead
from jaxattn.nn.inject import inject, replace_attention
from jaxattn.nn.mechanism import AttentionFn, Mechanism, MechanismModule
from jaxattn.nn.parameters import logical_axes
from jaxattn.nn.positions import LearnedPositions, MorletPositionalEncoding, SinusoidalPositions
from jaxattn.nn.random_features import FeatureDraw, FeatureStatistic, RandomFeatures
from jaxattn.nn.sibling_bias import SiblingBias
from jaxattn.nn.softmax import Softmax
from jaxattn.nn.spelling import parse_mechanism
from jaxattn.nn.transformer import MLP, Decoder, Encoder, TransformerBlock

__all__ = [
    "MLP",
    "Attention",
    "AttentionFn",
    "CrossCorrelation",
    "Decoder",
    "Encoder",
    "EnergyGated",
    "FeatureDraw",
    "FeatureStatistic",
    "Hierarchical",
    "InceptiveHead",
    "LearnedPositions",
    "Mechanism",
    "MechanismModule",
    "MorletPositionalEncoding",
    "PoolingHead",
    "RandomFeatures",
    "SiblingBias",
    "SinusoidalPositions",
    "Softmax",
    "TransformerBlock",
    "inject",
    "logical_axes",
    "parse_mechanism",
    "replace_attention",
]
