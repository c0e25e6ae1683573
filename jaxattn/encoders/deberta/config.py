"""The settings of DeBERTa-v2 and v3."""

from collections.abc import Mapping
from typing import Any

from jaxattn.core.checks import check_choice
from jaxattn.encoders.bert.config import read_bert
from jaxattn.encoders.config import ACTIVATIONS, Convolution, RelativePositions
from jaxattn.encoders.settings import require, setting

DEFAULTS = {
    "vocab_size": 128100,
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "layer_norm_eps": 1e-7,
    "type_vocab_size": 0,
}


def read_deberta(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `EncoderConfig`: those of BERT with other defaults, relative terms and a convolution."""
    source = DEFAULTS | {name: value for name, value in source.items() if value is not None}
    fields = read_bert(source)
    width = fields["hidden_size"]
    require(source, {"embedding_size": (width,), "attention_head_size": (width // fields["num_heads"],)})
    terms = _terms(source.get("pos_att_type"))
    relative = None
    if setting(source, "relative_attention", False):
        distance = setting(source, "max_relative_positions", -1)
        relative = RelativePositions(
            terms=terms,
            buckets=max(setting(source, "position_buckets", -1), 0),
            max_distance=distance if distance >= 1 else fields["max_length"],
            shared_projections=setting(source, "share_att_key", False),
            normalized="layer_norm" in _words(setting(source, "norm_rel_ebd", "none")),
        )
    elif terms:
        raise ValueError("pos_att_type in config.json must be empty where relative_attention is false.")
    absolute = setting(source, "position_biased_input", True)
    return fields | {
        "position_rows": fields["position_rows"] if absolute else 0,
        "relative": relative,
        "convolution": _convolution(source),
    }


def _convolution(source: Mapping[str, Any]) -> Convolution | None:
    size = setting(source, "conv_kernel_size", 0)
    if size <= 0:
        return None
    if size % 2 == 0:
        raise ValueError(f"conv_kernel_size in config.json must be odd; got {size}.")
    activation = setting(source, "conv_act", "tanh")
    check_choice("conv_act", activation, ACTIVATIONS)
    return Convolution(size, setting(source, "conv_groups", 1), activation)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.lower().split("|") if word.strip())


def _terms(value: Any) -> tuple[str, ...]:
    words = _words(value) if isinstance(value, str) else tuple(value or ())
    for word in words:
        check_choice("pos_att_type", word, ("c2p", "p2c"))
    return words
