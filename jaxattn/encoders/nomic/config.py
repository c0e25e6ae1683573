"""The settings of Nomic-BERT, by transformers' names or by those of its first publication."""

from collections.abc import Mapping
from typing import Any

from jaxattn.encoders.bert.config import read_bert
from jaxattn.encoders.config import BlockLayout
from jaxattn.encoders.settings import require, setting
from jaxattn.positions import Rotary

# The names of the first publication, which follow GPT-2.
OLD = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout_prob",
    "rotary_emb_base": "rope_theta",
}
ONLY: dict[str, tuple[Any, ...]] = {
    "prenorm": (False,),
    "parallel_block": (False,),
    "use_rms_norm": (False,),
    "causal": (False,),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_fraction": (1,),
    "rotary_emb_scale_base": (0,),
}


def read_nomic(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `EncoderConfig`."""
    require(source, ONLY | {"activation_function": ("swiglu",)})
    defaults = {"vocab_size": 30528, "hidden_act": "silu", "hidden_dropout_prob": 0.0}
    given = {OLD.get(name, name): value for name, value in source.items() if value is not None}
    source = defaults | {"max_position_embeddings": 2048} | given
    fields = read_bert(source)
    if source.get(
        "rotary_scaling_factor"
    ):  # only beyond the length of training, up to which positions are plain
        trained = setting(source, "max_trained_positions", 2048)
        fields["max_length"] = min(fields["max_length"], trained)
    return fields | {
        "position_rows": 0,
        "layout": BlockLayout(
            gated=True,
            rotary=(read_rotary(source, 1000.0),) * fields["num_layers"],
            attention_bias=False,
            mlp_bias=False,
            mlp_out_bias=False,
        ),
    }


def read_rotary(source: Mapping[str, Any], base: float) -> Rotary:
    """The rotary positions of all layers, by the newer settings or the older ones."""
    require(source, {"rope_scaling": ({},), "head_dim": (_head_dim(source),)})
    parameters = source.get("rope_parameters") or {}
    require(parameters, {"rope_type": ("default", "linear"), "partial_rotary_factor": (1,)})
    theta = setting(parameters, "rope_theta", setting(source, "rope_theta", base))
    factor = float(setting(parameters, "factor", 1.0)) if parameters.get("rope_type") == "linear" else 1.0
    return Rotary(float(theta), pairing="half", linear_factor=factor)


def _head_dim(source: Mapping[str, Any]) -> int:
    return setting(source, "hidden_size", 768) // setting(source, "num_attention_heads", 12)
