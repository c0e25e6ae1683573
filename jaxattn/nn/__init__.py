"""Flax NNX modules: each holds parameters and calls kernels."""

from jaxattn.core.mechanism import AttentionFn, Mechanism, MechanismModule
from jaxattn.core.parameters import logical_axes
from jaxattn.energy.mechanism import EnergyGated
from jaxattn.lags.mechanism import CrossCorrelation
from jaxattn.nn.attention import Attention
from jaxattn.nn.blocks import MLP, TransformerBlock
from jaxattn.nn.decoder import Decoder
from jaxattn.nn.encoder import Encoder
from jaxattn.nn.heads import PoolingHead
from jaxattn.nn.inceptive_head import InceptiveHead
from jaxattn.nn.inject import inject, replace_attention
from jaxattn.nn.pooling import Pooling
from jaxattn.nn.positions import LearnedPositions, MorletPositionalEncoding, SinusoidalPositions
from jaxattn.nn.spelling import parse_mechanism
from jaxattn.random_features.mechanism import FeatureDraw, FeatureStatistic, RandomFeatures
from jaxattn.softmax.mechanism import Softmax
from jaxattn.tree.mechanism import Hierarchical
from jaxattn.tree.sibling_bias import SiblingBias

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
    "Pooling",
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
