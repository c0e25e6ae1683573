"""The settings of ModernBERT."""

from collections.abc import Mapping
from typing import Any

from jaxattn.core.checks import check_choice
from jaxattn.encoders.config import BlockLayout
from jaxattn.encoders.settings import require, setting
from jaxattn.positions import Rotary

KINDS = ("full_attention", "sliding_attention")


def read_modernbert(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `EncoderConfig`."""
    hidden_size = setting(source, "hidden_size", 768)
    heads = setting(source, "num_attention_heads", 12)
    # Dropout inside the branches was never used in training these models.
    require(source, {"attention_dropout": (0,), "mlp_dropout": (0,), "head_dim": (hidden_size // heads,)})
    layers = setting(source, "num_hidden_layers", 22)
    kinds = source.get("layer_types")
    if kinds is None:
        every = setting(source, "global_attn_every_n_layers", 3)
        kinds = [KINDS[bool(layer % every)] for layer in range(layers)]
    if len(kinds) != layers:
        raise ValueError(f"layer_types in config.json must name {layers} layers; got {len(kinds)}.")
    for kind in kinds:
        check_choice("layer_types", kind, KINDS)
    window = setting(source, "local_attention", 128) // 2
    rotary = {kind: _rotary(source, kind) for kind in KINDS}
    return {
        "vocab_size": setting(source, "vocab_size", 50368),
        "hidden_size": hidden_size,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": setting(source, "intermediate_size", 1152),
        "max_length": setting(source, "max_position_embeddings", 8192),
        "pad_token_id": setting(source, "pad_token_id", 50283),
        "hidden_act": setting(source, "hidden_activation", "gelu"),
        "norm_eps": setting(source, "norm_eps", 1e-5),
        "embedding_dropout": setting(source, "embedding_dropout", 0.0),
        "layout": BlockLayout(
            pre_norm=True,
            gated=True,
            rotary=tuple(rotary[kind] for kind in kinds),
            windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
            attention_bias=setting(source, "attention_bias", False),
            mlp_bias=setting(source, "mlp_bias", False),
            mlp_out_bias=setting(source, "mlp_bias", False),
            norm_bias=setting(source, "norm_bias", False),
        ),
    }


def _rotary(source: Mapping[str, Any], kind: str) -> Rotary:
    """The rotary position embedding of a kind of layers, by the newer or the older settings."""
    old, default = {
        "full_attention": ("global_rope_theta", 160000.0),
        "sliding_attention": ("local_rope_theta", 10000.0),
    }[kind]
    require(source, {"rope_scaling": ({},)})
    parameters = source.get("rope_parameters") or {}
    if not set(parameters) <= set(KINDS):
        raise ValueError(
            f"rope_parameters in config.json must have the keys {KINDS}; got {sorted(parameters)}."
        )
    given = parameters.get(kind) or {}
    require(given, {"rope_type": ("default", "linear"), "partial_rotary_factor": (1,)})
    base = float(setting(given, "rope_theta", setting(source, old, default)))
    factor = float(setting(given, "factor", 1.0)) if given.get("rope_type") == "linear" else 1.0
    return Rotary(base, pairing="half", linear_factor=factor)
