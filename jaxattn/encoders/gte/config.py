"""The settings of GTE."""

from collections.abc import Mapping
from typing import Any

from jaxattn.encoders.bert.config import read_bert
from jaxattn.encoders.config import BlockLayout
from jaxattn.encoders.nomic.config import read_rotary
from jaxattn.encoders.settings import require

DEFAULTS = {"vocab_size": 250048, "max_position_embeddings": 8192, "pad_token_id": 1, "type_vocab_size": 1}
OLDER = {"vocab_size": 30528, "max_position_embeddings": 2048, "pad_token_id": 0}


def read_gte(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `EncoderConfig`."""
    require(
        source, {"layer_norm_type": ("layer_norm",), "logn_attention_scale": (False,), "pack_qkv": (True,)}
    )
    older = source["model_type"] == "new"
    given = {name: value for name, value in source.items() if value is not None}
    fields = read_bert(DEFAULTS | (OLDER if older else {}) | given)
    rotary = read_rotary(source, 10000.0 if older else 160000.0)
    layout = BlockLayout(gated=True, rotary=(rotary,) * fields["num_layers"], mlp_bias=False)
    return fields | {"position_rows": 0, "layout": layout}
