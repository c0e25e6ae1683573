"""The settings of MPNet."""

from collections.abc import Mapping
from typing import Any

from jaxattn.encoders.bert.config import read_roberta
from jaxattn.encoders.biased import BUCKETS
from jaxattn.encoders.settings import require


def read_mpnet(source: Mapping[str, Any]) -> dict[str, Any]:
    """As for RoBERTa, without token types and with a bias of pairs."""
    # The published code has both numbers written into it.
    require(source, {"relative_attention_num_buckets": (BUCKETS,), "pad_token_id": (1,)})
    return read_roberta({"vocab_size": 30527, **source}) | {"type_vocab_size": 0, "pair_bias": "buckets"}
