"""The settings of JinaBERT, which calls itself "bert" with position_embedding_type "alibi"."""

from collections.abc import Mapping
from typing import Any

from jaxattn.encoders.bert.config import read_bert
from jaxattn.encoders.config import BlockLayout
from jaxattn.encoders.settings import require, setting

FEED_FORWARD = ("geglu", "reglu", "original")


def read_jina(source: Mapping[str, Any]) -> dict[str, Any]:
    """As for BERT, without a table of positions."""
    require(source, {"feed_forward_type": FEED_FORWARD})
    kind = setting(source, "feed_forward_type", "original")
    fields = read_bert(source) | {"position_rows": 0, "pair_bias": "alibi"}
    if kind == "original":
        return fields
    layout = BlockLayout(gated=True, mlp_bias=False)
    return fields | {"layout": layout, "hidden_act": {"geglu": "gelu", "reglu": "relu"}[kind]}
