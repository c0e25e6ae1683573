"""The names of the parameters of heads in a checkpoint: one row a family and task."""

import dataclasses
from collections.abc import Collection, Mapping

from jaxattn.core.checks import check_choice
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layout import Tensor, linear, norm


@dataclasses.dataclass(frozen=True)
class HeadNames:
    """The layers of a head: out(norm(activation(dense(x)))), of which all but the last may be missing.

    Attributes:
        out: the last linear layer; in masked language modelling its kernel, usually the table of words.
        dense: the linear layer before it.
        norm: the normalisation between the two.
        activation: between dense and norm: a name of `ACTIVATIONS`, or @ and the name of a setting.
        bias: of masked language modelling, one number a word.
        inside: whether dense stands among the encoder's names, as its pooler.
    """

    out: str
    dense: str = ""
    norm: str = ""
    activation: str = "@hidden_act"
    bias: str = ""
    inside: bool = False


def _predictions(name: str, norm_name: str, *, activation: str = "@hidden_act", bias: str = "") -> HeadNames:
    dense, normalisation = f"{name}.dense", f"{name}.{norm_name}"
    return HeadNames(f"{bias.removesuffix('.bias')}.decoder", dense, normalisation, activation, bias)


BERT = _predictions("cls.predictions.transform", "LayerNorm", bias="cls.predictions.bias")
ROBERTA = _predictions("lm_head", "layer_norm", activation="gelu", bias="lm_head.bias")
MODERNBERT = HeadNames("classifier", "head.dense", "head.norm", "@classifier_activation")
# By family; the first row whose layers are in the file is taken.
MASKED: dict[str, tuple[HeadNames, ...]] = {
    "bert": (BERT,),
    "jina-bert": (BERT,),
    "nomic_bert": (_predictions("cls.predictions.transform", "layer_norm", bias="cls.predictions.bias"),),
    "roberta": (ROBERTA,),
    "xlm-roberta": (ROBERTA,),
    "camembert": (ROBERTA,),
    "mpnet": (ROBERTA,),
    "gte": (HeadNames("lm_head.decoder", "lm_head.dense", "lm_head.norm", "gelu", "lm_head.decoder.bias"),),
    "distilbert": (
        HeadNames("vocab_projector", "vocab_transform", "vocab_layer_norm", bias="vocab_projector.bias"),
    ),
    "electra": (
        HeadNames(
            "generator_lm_head",
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "gelu",
            "generator_lm_head.bias",
        ),
    ),
    "albert": (_predictions("predictions", "LayerNorm", bias="predictions.bias"),),
    "deberta-v2": (
        BERT,
        _predictions("lm_predictions.lm_head", "LayerNorm", bias="lm_predictions.lm_head.bias"),
    ),
    "modernbert": (dataclasses.replace(MODERNBERT, out="decoder", bias="decoder.bias"),),
}
POOLER = HeadNames("classifier", "pooler.dense", activation="tanh", inside=True)
PROJECTED = HeadNames("classifier.out_proj", "classifier.dense", activation="tanh")
SEQUENCE: dict[str, tuple[HeadNames, ...]] = {
    **dict.fromkeys(("bert", "jina-bert", "nomic_bert", "gte"), (POOLER,)),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), (PROJECTED,)),
    "electra": (dataclasses.replace(PROJECTED, activation="gelu"),),
    "albert": (dataclasses.replace(POOLER, dense="pooler"),),
    "distilbert": (HeadNames("classifier", "pre_classifier", activation="relu"),),
    "deberta-v2": (HeadNames("classifier", "pooler.dense", activation="@pooler_hidden_act"),),
    "modernbert": (MODERNBERT,),
}
TOKENS: dict[str, tuple[HeadNames, ...]] = {
    **dict.fromkeys(SEQUENCE, (HeadNames("classifier"),)),
    "modernbert": (MODERNBERT,),
}
# What the encoder's names begin with in files of models with heads, where that is not the family's name.
PREFIXES = {
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "jina-bert": "bert",
    "deberta-v2": "deberta",
    "modernbert": "model",
}


def choose(
    rows: Mapping[str, tuple[HeadNames, ...]], config: EncoderConfig, present: Collection[str]
) -> HeadNames:
    """The row whose layers are in a file.

    Raises:
        ValueError: none is.
    """
    check_choice("model_type", config.model_type, tuple(rows))
    needed: list[str] = []
    for names in rows[config.model_type]:
        needed = [names.bias or f"{names.out}.weight"] + ([f"{names.dense}.weight"] if names.dense else [])
        if set(needed) <= set(present):
            return names
    raise ValueError(
        f"name_or_path must hold the head of this task, with the tensors {' and '.join(needed)}; the file has "
        f"{', '.join(sorted(present)) or 'nothing'} beside the encoder. It may have been saved without, or with "
        "another head."
    )


def head_tensors(names: HeadNames, config: EncoderConfig, *, tied: bool = True) -> dict[str, Tensor]:
    """The parameters' places, by their paths in a head.

    Args:
        names: of the layers.
        config: of the encoder.
        tied: of masked language modelling, whether the last kernel is the table of words.
    """
    table: dict[str, Tensor] = {}
    if names.dense:
        table |= linear("transform.dense", names.dense, bias=dense_bias(names, config))
    if names.norm:
        table |= norm("transform.norm", names.norm, bias=config.layout.norm_bias)
    if not names.bias:
        return table | linear("out", names.out)
    if not tied:
        table["kernel"] = Tensor(f"{names.out}.weight", "linear")
    return table | {"bias": Tensor(names.bias)}


def dense_bias(names: HeadNames, config: EncoderConfig) -> bool:
    """Whether the layer before the last has an offset: always, but in ModernBERT by a setting."""
    return names.dense != "head.dense" or bool(config.to_dict().get("classifier_bias", False))
