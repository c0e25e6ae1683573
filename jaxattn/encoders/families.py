"""The model types of config.json and where each is described."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxattn.encoders import bert, deberta, modernbert
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family's files are read.

    Attributes:
        read: from the content of config.json to the fields of `EncoderConfig`.
        tensors: the places of all parameters.
        anchor: the name of a tensor that every checkpoint has; what stands before it is the prefix.
        body: beginnings of the names that belong to the encoder and not to a head.
        optional: endings of names in the body that take no part in the computation.
    """

    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    tensors: Callable[[EncoderConfig], dict[str, Tensor]]
    anchor: str = "embeddings.word_embeddings.weight"
    body: tuple[str, ...] = ("embeddings.", "encoder.")
    optional: tuple[str, ...] = ("position_ids", "token_type_ids")


BERT = Family(bert.read_bert, bert.bert_tensors)
ROBERTA = Family(bert.read_roberta, bert.bert_tensors)

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": Family(bert.read_distilbert, bert.distilbert_tensors, body=("embeddings.", "transformer.")),
    "deberta-v2": Family(
        deberta.read,
        deberta.tensors,
        # Models without absolute positions were saved with an unused table of them.
        optional=("position_ids", "embeddings.position_embeddings.weight"),
    ),
    "modernbert": Family(
        modernbert.read,
        modernbert.tensors,
        anchor="embeddings.tok_embeddings.weight",
        body=("embeddings.", "layers.", "final_norm."),
    ),
}
