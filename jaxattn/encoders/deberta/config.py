"""The settings of DeBERTa-v2 and v3."""

from collections.abc import Mapping
from typing import Any

from jaxattn.core.checks import check_choice
from jaxattn.encoders.config import ACTIVATIONS, Convolution, RelativePositions
from jaxattn.encoders.settings import require, setting


def read_deberta(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `EncoderConfig`."""
    hidden_size = setting(source, "hidden_size", 1536)
    heads = setting(source, "num_attention_heads", 24)
    require(source, {"embedding_size": (hidden_size,), "attention_head_size": (hidden_size // heads,)})
    positions = setting(source, "max_position_embeddings", 512)
    dropout = setting(source, "hidden_dropout_prob", 0.1)
    relative = None
    if setting(source, "relative_attention", False):
        relative = RelativePositions(
            terms=_terms(source.get("pos_att_type")),
            buckets=max(setting(source, "position_buckets", -1), 0),
            max_distance=_max_distance(source, positions),
            shared_projections=setting(source, "share_att_key", False),
            normalized="layer_norm" in _words(setting(source, "norm_rel_ebd", "none")),
        )
    elif _terms(source.get("pos_att_type")):
        raise ValueError("pos_att_type in config.json must be empty where relative_attention is false.")
    convolution = None
    if setting(source, "conv_kernel_size", 0) > 0:
        convolution = Convolution(
            kernel_size=source["conv_kernel_size"],
            groups=setting(source, "conv_groups", 1),
            activation=setting(source, "conv_act", "tanh"),
        )
        check_choice("conv_act", convolution.activation, ACTIVATIONS)
        if convolution.kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size in config.json must be odd; got {convolution.kernel_size}.")
    return {
        "vocab_size": setting(source, "vocab_size", 128100),
        "hidden_size": hidden_size,
        "num_layers": setting(source, "num_hidden_layers", 24),
        "num_heads": heads,
        "intermediate_size": setting(source, "intermediate_size", 6144),
        "max_length": positions,
        "position_rows": positions if setting(source, "position_biased_input", True) else 0,
        "pad_token_id": setting(source, "pad_token_id", 0),
        "hidden_act": setting(source, "hidden_act", "gelu"),
        "norm_eps": setting(source, "layer_norm_eps", 1e-7),
        "dropout": dropout,
        "embedding_dropout": dropout,
        "type_vocab_size": setting(source, "type_vocab_size", 0),
        "relative": relative,
        "convolution": convolution,
    }


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.lower().split("|") if word.strip())


def _terms(value: Any) -> tuple[str, ...]:
    words = _words(value) if isinstance(value, str) else tuple(value or ())
    for word in words:
        check_choice("pos_att_type", word, ("c2p", "p2c"))
    return words


def _max_distance(source: Mapping[str, Any], positions: int) -> int:
    distance = setting(source, "max_relative_positions", -1)
    return distance if distance >= 1 else positions
