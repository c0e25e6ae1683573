"""The config of a pretrained encoder, and how a family of models is read."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxattn.core.checks import check_choice
from jaxattn.encoders.layout import Tensor
from jaxattn.encoders.settings import read_settings, require
from jaxattn.positions import Rotary

# By the names that config.json gives them.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nnx.gelu, approximate=False),
    "gelu_python": functools.partial(nnx.gelu, approximate=False),
    "gelu_new": functools.partial(nnx.gelu, approximate=True),
    "gelu_fast": functools.partial(nnx.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nnx.gelu, approximate=True),
    "quick_gelu": lambda x: x * nnx.sigmoid(1.702 * x),
    "relu": nnx.relu,
    "silu": nnx.silu,
    "swish": nnx.silu,
    "tanh": jnp.tanh,
}

# Settings that change the computation and are supported at one value only. Absent and null mean that value.
ONLY: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": ({},),
}


@dataclasses.dataclass(frozen=True)
class RelativePositions:
    """The relative terms of DeBERTa's scores.

    Attributes:
        terms: any of "c2p" (content to position) and "p2c" (position to content).
        buckets: buckets a direction, logarithmic beyond half of them; 0 for one a distance.
        max_distance: the largest distance told apart.
        shared_projections: positions go through the projections of queries and keys, not their own.
        normalized: whether the table of positions goes through a LayerNorm.
    """

    terms: tuple[str, ...]
    buckets: int
    max_distance: int
    shared_projections: bool
    normalized: bool

    @property
    def span(self) -> int:
        """Rows of the table a direction."""
        return self.buckets or self.max_distance


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The convolution beside the first block of some DeBERTa models."""

    kernel_size: int
    groups: int
    activation: str


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """The parts of a block; by default those of BERT.

    Attributes:
        pre_norm: branches normalise their input, not their sum with it; the first block has no norm before its
            attention, and the last one is followed by a norm (ModernBERT).
        gated: whether MLPs are gated.
        rotary: the rotary position embedding of each layer; empty for none.
        windows: for each layer, how far a token sees to either side, None for all the way; empty for none.
        attention_bias: whether the attention's projections have offsets.
        mlp_bias: whether the MLP's first layers have offsets.
        mlp_out_bias: whether its last one has.
        norm_bias: whether normalisations have offsets.
    """

    pre_norm: bool = False
    gated: bool = False
    rotary: tuple[Rotary, ...] = ()
    windows: tuple[int | None, ...] = ()
    attention_bias: bool = True
    mlp_bias: bool = True
    mlp_out_bias: bool = True
    norm_bias: bool = True


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and options of a pretrained encoder; `EncoderConfig.from_dict` reads them from a config.json.

    Attributes:
        model_type: the family, such as "bert" or "deberta-v2".
        vocab_size: number of tokens V.
        hidden_size: width D.
        num_layers: number of blocks.
        num_heads: heads of every attention.
        intermediate_size: hidden width of the MLPs.
        max_length: the longest text, in tokens.
        pad_token_id: id that fills the ends of short texts.
        hidden_act: name of the MLPs' activation.
        norm_eps: added to variances in normalisations.
        dropout: probability on every branch. Weights of the attention are never dropped (the kernels form none),
            so a config's attention_probs_dropout_prob plays no part in training here.
        embedding_dropout: probability on the embedding.
        position_rows: rows of the table of absolute positions; 0 for no table.
        positions_skip_padding: positions count the tokens that are not padding, from pad_token_id + 1 on (RoBERTa).
        type_vocab_size: kinds of tokens (first and second text of a pair); 0 for no such embedding.
        relative: DeBERTa's relative terms, or None.
        convolution: DeBERTa's convolution, or None.
        pair_bias: what is added to the scores of pairs of tokens: "buckets", a learned number for every bucket of
            distances (MPNet), "alibi", −slope·|i − j| (JinaBERT), or "" for nothing.
        embedding_size: width of the embedding, which a linear layer takes to D; 0 for D and no such layer.
        shared: for each layer, the number of the block that it is (ALBERT); empty for a block a layer.
        layout: the parts of the blocks.
        source: the config.json as it was.

    Examples:
        >>> from jaxattn.models import EncoderConfig
        >>> config = EncoderConfig.from_dict(
        ...     {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
        ... )
        >>> config.num_layers, config.vocab_size, config.max_length
        (2, 30522, 512)
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_length: int
    pad_token_id: int = 0
    hidden_act: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    position_rows: int = 0
    positions_skip_padding: bool = False
    type_vocab_size: int = 0
    relative: RelativePositions | None = None
    convolution: Convolution | None = None
    pair_bias: str = ""
    embedding_size: int = 0
    shared: tuple[int, ...] = ()
    layout: BlockLayout = BlockLayout()
    source: str = "{}"

    def __post_init__(self):
        check_choice("hidden_act", self.hidden_act, ACTIVATIONS)
        check_choice("pair_bias", self.pair_bias, ("", "buckets", "alibi"))
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_length")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads = {self.num_heads}; got {self.hidden_size}."
            )

    @property
    def num_blocks(self) -> int:
        """Blocks with weights of their own."""
        return max(self.shared, default=self.num_layers - 1) + 1

    @property
    def plain(self) -> bool:
        """Whether the blocks are those of BERT, one a layer."""
        return self.relative is None and not (self.pair_bias or self.shared) and self.layout == BlockLayout()

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> "EncoderConfig":
        """Reads the content of a config.json; a setting that is missing has the family's default.

        Args:
            source: the content, with the names that transformers gives them.

        Returns:
            The config.

        Raises:
            ValueError: an unknown model_type, or a setting that would change the computation and is not supported.
        """
        name = str(source.get("model_type"))
        # Names of models whose code is not a part of transformers.
        if name == "bert" and source.get("position_embedding_type") == "alibi":
            name = "jina-bert"
        elif name == "new":
            name = "gte"
        check_choice("model_type", name, tuple(FAMILIES))
        family = FAMILIES[name]
        require(source, ONLY | {"position_embedding_type": (family.positions,)})
        fields = family.read(source)
        return cls(
            model_type=name,
            source=json.dumps(dict(source), indent=2, sort_keys=True),
            **fields,
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "EncoderConfig":
        """Reads the config.json of a folder; see `from_dict`."""
        return cls.from_dict(read_settings(folder))

    def to_dict(self) -> dict[str, Any]:
        """The config.json that this config came from."""
        return json.loads(self.source)


@dataclasses.dataclass(frozen=True)
class Family:
    """How the files of a family of models are read.

    Attributes:
        read: from the content of config.json to the fields of `EncoderConfig`.
        tensors: for every parameter, its place in a checkpoint.
        anchor: the name of a tensor that every checkpoint has; what precedes it is the prefix of all names.
        body: beginnings of the names that belong to the encoder and not to a head.
        unused: for a config, endings of names in the body that take no part in the computation.
        positions: what position_embedding_type of config.json may say.
    """

    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    tensors: Callable[[EncoderConfig], dict[str, Tensor]]
    anchor: str = "embeddings.word_embeddings.weight"
    body: tuple[str, ...] = ("embeddings.", "encoder.")
    unused: Callable[[EncoderConfig], tuple[str, ...]] = lambda config: ("position_ids", "token_type_ids")
    positions: str = "absolute"


# By the model_type of config.json; `families.py` has the rows.
FAMILIES: dict[str, Family] = {}
