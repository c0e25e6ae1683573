"""Flax NNX modules: each holds parameters and calls kernels."""

from jaxattn.core.flax_mechanism import AttentionFn
from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Flops, Gate, GateModule, Mechanism, MechanismModule
from jaxattn.core.parameters import HeldVariable, UndecayedParam, axis_names, decays, logical_axes, parameter
from jaxattn.core.registry import (
    GATES,
    MECHANISMS,
    GateRow,
    MechanismRow,
    mechanism_help,
    parse_mechanism,
    register_gate,
    register_mechanism,
    spell_mechanism,
    whole_number,
)
from jaxattn.energy.mechanism import EnergyGated
from jaxattn.lags.mechanism import CrossCorrelation
from jaxattn.linear.mechanism import Linear
from jaxattn.nn.attention import Attention
from jaxattn.nn.blocks import MLP, TransformerBlock
from jaxattn.nn.context import ProjectedContext
from jaxattn.nn.decoder import Decoder
from jaxattn.nn.encoder import Encoder
from jaxattn.nn.heads import PoolingHead
from jaxattn.nn.inceptive_head import InceptiveHead
from jaxattn.nn.inject import inject, replace_attention
from jaxattn.nn.pooling import Pooling
from jaxattn.nn.positions import LearnedPositions, MorletPositionalEncoding, SinusoidalPositions
from jaxattn.nn.scanned import ScannedBlocks
from jaxattn.nn.sharding import SHARDING_RULES, partition_spec
from jaxattn.nn.stack import scan_layers, unroll_layers
from jaxattn.output_gate.mechanism import OutputGated
from jaxattn.random_features.mechanism import FeatureDraw, FeatureStatistic, RandomFeatures
from jaxattn.recency.mechanism import Alibi, Forgetting
from jaxattn.retention.mechanism import Retention
from jaxattn.softmax.mechanism import Softmax
from jaxattn.tree.mechanism import Hierarchical
from jaxattn.tree.sibling_bias import SiblingBias

__all__ = [
    "Forgetting",
    "GATES",
    "MECHANISMS",
    "MLP",
    "Alibi",
    "Attention",
    "AttentionFn",
    "AttentionInputs",
    "CrossCorrelation",
    "Decoder",
    "Encoder",
    "EnergyGated",
    "FeatureDraw",
    "FeatureStatistic",
    "Flops",
    "Gate",
    "GateModule",
    "GateRow",
    "HeldVariable",
    "Hierarchical",
    "InceptiveHead",
    "LayerSizes",
    "LearnedPositions",
    "Linear",
    "Mechanism",
    "MechanismModule",
    "MechanismRow",
    "MorletPositionalEncoding",
    "SHARDING_RULES",
    "Pooling",
    "OutputGated",
    "PoolingHead",
    "ProjectedContext",
    "RandomFeatures",
    "Retention",
    "ScannedBlocks",
    "SiblingBias",
    "SinusoidalPositions",
    "Softmax",
    "TransformerBlock",
    "UndecayedParam",
    "axis_names",
    "decays",
    "inject",
    "logical_axes",
    "mechanism_help",
    "parameter",
    "parse_mechanism",
    "partition_spec",
    "register_gate",
    "register_mechanism",
    "replace_attention",
    "scan_layers",
    "spell_mechanism",
    "unroll_layers",
    "whole_number",
]
