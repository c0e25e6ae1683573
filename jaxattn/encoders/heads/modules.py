"""The layers of heads that come with checkpoints."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.parameters import parameter
from jaxattn.encoders.config import ACTIVATIONS, EncoderConfig
from jaxattn.encoders.heads.names import SEQUENCE, HeadNames, dense_bias
from jaxattn.encoders.layers import INIT, make_norm
from jaxattn.nn.heads import Head
from jaxattn.nn.layers import linear
from jaxattn.nn.pooling import Pooling


class Transform(nnx.Module):
    """norm(activation(dense(x))), of which all may be missing; `width` is that of the result."""

    def __init__(self, config: EncoderConfig, names: HeadNames, width: int, **options: Any):
        self.activation = activation_of(config, names)
        dense = None
        if names.dense:
            bias, axes = dense_bias(names, config), ("embed", "embed")
            dense = linear(config.hidden_size, width, axes, use_bias=bias, kernel_init=INIT, **options)
        self.dense = nnx.data(dense)
        self.norm = nnx.data(make_norm(config, width, **options) if names.norm else None)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        """Applies the layers that there are."""
        x = x if self.dense is None else ACTIVATIONS[self.activation](self.dense(x))
        return x if self.norm is None else self.norm(x)


class PublishedHead(Head):
    """Logits of a text: one vector by `Pooling`, norm(activation(dense(x))), dropout, the last layer.

    This is the head that transformers' ForSequenceClassification has for the encoder's family.

    Args:
        config: of the encoder; its classifier_pooling is "cls" unless it says "mean".
        names: which layers there are; None for the family's first.
        num_classes: number of logits.
        dropout: probability, on what the last layer reads; None for the config's.
        dtype: dtype of the computation; the logits are computed in float32.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Examples:
        >>> import tempfile
        >>> from flax import nnx
        >>> from jaxattn.models import EncoderConfig, PublishedHead, TextClassifier, TextEncoder
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
        >>> layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = EncoderConfig.from_dict({"model_type": "bert", **sizes, **layers})
        >>> encoder = TextEncoder(config, rngs=nnx.Rngs(0))
        >>> model = TextClassifier(encoder, PublishedHead(config, None, 2, rngs=nnx.Rngs(1)))
        >>> model.labels = ("no", "yes")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)  # a BertForSequenceClassification
        ...     again = TextClassifier.from_pretrained(folder)
        >>> again.labels
        ('no', 'yes')
    """

    def __init__(
        self,
        config: EncoderConfig,
        names: HeadNames | None,
        num_classes: int,
        *,
        dropout: float | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.features, self.dtype = config.hidden_size, dtype
        self.names = SEQUENCE[config.model_type][0] if names is None else names
        pooling = config.to_dict().get("classifier_pooling") or "cls"
        self.pooling = Pooling(pooling, config.hidden_size, rngs=rngs)
        self.transform = Transform(config, self.names, config.hidden_size, dtype=dtype, **options)
        self.dropout = nnx.Dropout(_rate(config) if dropout is None else dropout, deterministic=True)
        self.out = _last_layer(config, num_classes, **options)

    def _logits(self, hidden: Array, token_mask: Array, **drop: Any) -> Array:
        return self.out(self.dropout(self.transform(self.pooling(hidden, token_mask)), **drop))


class TokenHead(nnx.Module):
    """Logits of every token: norm(activation(dense(x))), dropout, the last layer; see `PublishedHead`."""

    def __init__(
        self,
        config: EncoderConfig,
        names: HeadNames,
        num_classes: int,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.transform = Transform(config, names, config.hidden_size, dtype=dtype, **options)
        self.dropout = nnx.Dropout(_rate(config), deterministic=True)
        self.out = _last_layer(config, num_classes, **options)

    def __call__(self, hidden: Float[Array, "B L D"], **drop: Any) -> Float[Array, "B L C"]:
        """Logits in float32; `drop` has the arguments of `nnx.Dropout`: deterministic and rngs."""
        return self.out(self.dropout(self.transform(hidden), **drop))


class MaskedHead(nnx.Module):
    """Logits of all words at every token: norm(activation(dense(x))) Eᵀ + b, with the table of words E or its own.

    Args:
        config: of the encoder.
        names: which layers there are.
        tied: whether E is the encoder's table of words.
        dtype: dtype of the computation; the logits are in float32.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.
    """

    def __init__(
        self,
        config: EncoderConfig,
        names: HeadNames,
        *,
        tied: bool = True,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = config.embedding_size or config.hidden_size
        self.transform = Transform(config, names, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        shape, zeros = (width, config.vocab_size), nnx.initializers.zeros_init()
        kernel = None if tied else parameter(INIT, rngs.params(), shape, ("embed", "vocab"), param_dtype)
        self.kernel = nnx.data(kernel)
        self.bias = parameter(zeros, rngs.params(), shape[1:], ("vocab",), param_dtype)

    def __call__(self, hidden: Float[Array, "B L D"], words: Float[Array, "V E"]) -> Float[Array, "B L V"]:
        """The logits; `words` is the encoder's table."""
        x = self.transform(hidden)
        kernel = words.T if self.kernel is None else self.kernel[...]
        logits = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + self.bias[...].astype(jnp.float32)


def _last_layer(config: EncoderConfig, num_classes: int, **options: Any) -> nnx.Linear:
    axes = ("embed", "classes")
    return linear(config.hidden_size, num_classes, axes, kernel_init=INIT, dtype=jnp.float32, **options)


def activation_of(config: EncoderConfig, names: HeadNames) -> str:
    """The name of a head's activation."""
    name = names.activation
    if name.startswith("@"):
        name = config.hidden_act if name == "@hidden_act" else config.to_dict().get(name[1:]) or "gelu"
    check_choice(names.activation.removeprefix("@"), name, ACTIVATIONS)
    return name


def _rate(config: EncoderConfig) -> float:
    source = config.to_dict()
    names = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "cls_dropout")
    return float(next((source[name] for name in names if source.get(name) is not None), config.dropout))
