"""The fine-tuned model, a pretrained encoder and a head, as functions of its parameters; and its optimiser."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from jaxattn.models import PublishedHead, TextClassifier
from jaxattn.nn import InceptiveHead, PoolingHead, parse_mechanism, replace_attention
from jaxattn_train.data.batches import Batch
from jaxattn_train.engine import loop
from jaxattn_train.engine.functional import Functional, Params, compute_dtype, functionalize
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.finetune.config import FinetuneConfig, FinetuneModel, FinetuneOptimizer

ENCODER = "encoder."


def load_encoder(model: FinetuneModel) -> Any:
    """The pretrained encoder that --encoder names.

    Raises:
        UserError: no such encoder, or its files are missing, damaged or of a kind that is not read.
    """
    from jaxattn.models import TextEncoder

    try:
        return TextEncoder.from_pretrained(model.encoder, dtype=compute_dtype(model.dtype))
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"--encoder {model.encoder}: {error}") from error


def pretrained_parameters(encoder: nnx.Module) -> Params:
    """The encoder's parameters by their names in the whole model."""
    variables = nnx.to_flat_state(nnx.state(encoder))
    return {ENCODER + ".".join(map(str, path)): variable[...] for path, variable in variables}


def make_head(model: FinetuneModel, config: Any, outputs: int, rngs: nnx.Rngs) -> Any:
    """The configured head, for an encoder with this config."""
    dtype, features = compute_dtype(model.dtype), config.hidden_size
    if model.head == "published":
        return PublishedHead(config, None, outputs, dropout=model.dropout, dtype=dtype, rngs=rngs)
    if model.head != "inceptive":
        return PoolingHead(
            features, outputs, pooling=model.head, dropout=model.dropout, dtype=dtype, rngs=rngs
        )
    return InceptiveHead(
        features,
        outputs,
        kernels=model.kernels,
        filters=model.filters,
        num_heads=model.head_heads,
        normalization=model.normalization,
        activation=model.activation,
        convolution=model.convolution,
        attention=None if model.head_attention == "none" else model.head_attention,
        pooling=model.pooling,
        hidden_features=model.hidden_features,
        dropout=model.dropout,
        dtype=dtype,
        rngs=rngs,
    )


def text_classifier(
    model: FinetuneModel, encoder: Any, outputs: int, example: Batch | None = None
) -> Functional:
    """Encoder and head as functions of their parameters. Its `init` draws the head and leaves the encoder at zeros.

    Args:
        model: what is built.
        encoder: from `load_encoder`; its values are not kept, see `pretrained_parameters`.
        outputs: number of logits.
        example: a batch (seeds, B, ...) to trace the model with; None for a short text.

    Raises:
        UserError: what the model itself rejects, such as an unknown mechanism or layer.
    """
    graph, state = nnx.split(encoder)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)

    def build(key: PRNGKeyArray) -> nnx.Module:
        head_key, attention_key = jax.random.split(key)
        # Zeros: weights of 100 MB must not become constants of the compiled initialisation.
        bare = nnx.merge(graph, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        if model.attention is not None:
            bare = replace_attention(
                bare,
                parse_mechanism(model.attention),
                layers=model.attention_layers,
                rngs=nnx.Rngs(params=attention_key),
            )
        head = make_head(model, encoder.config, outputs, nnx.Rngs(params=head_key))
        return TextClassifier(bare, head, freeze_encoder=model.freeze_encoder)

    tokens = jnp.zeros((1, 8), jnp.int32) if example is None else example["tokens"][0]
    mask = jnp.ones((1, 8), bool) if example is None else example["mask"][0]
    # Batch normalisation and the encoder's dropout differ in training even without dropout in the head.
    functional = _as_classifier(functionalize(build, tokens, dropout=True, attention_mask=mask))
    return freeze(functional, ENCODER) if model.freeze_encoder else functional


def _as_classifier(functional: Functional) -> Functional:
    """The same model with the input names of all classifiers."""

    def apply(params: Params, tokens: Array, *, token_mask: Array, tree: Any = None, **more: Any) -> Array:
        return functional.apply(params, tokens, attention_mask=token_mask, **more)

    def train_apply(
        params: Params, tokens: Array, key: PRNGKeyArray, *, token_mask: Array, tree: Any = None
    ) -> tuple[Array, Params]:
        return functional.train_apply(params, tokens, key, attention_mask=token_mask)

    return functional._replace(apply=apply, train_apply=train_apply)


def freeze(functional: Functional, prefix: str) -> Functional:
    """The same model with all parameters under a prefix frozen: no gradient, no optimiser state."""
    frozen = frozenset(name for name in functional.shapes if name.startswith(prefix)) - functional.held

    def train_apply(params: Params, *args: Any, **kwargs: Any) -> tuple[Array, Params]:
        logits, held = functional.train_apply(params, *args, **kwargs)
        return logits, held | {name: params[name] for name in frozen}

    return functional._replace(train_apply=train_apply, held=functional.held | frozen)


def make_optimizer(
    config: FinetuneOptimizer, layers: int, decayed: Collection[str]
) -> optax.GradientTransformation:
    """Clipping and AdamW, with updates scaled by each parameter's share of the learning rate.

    Args:
        config: of the optimiser.
        layers: blocks of the encoder.
        decayed: names of the parameters that weight decay applies to.
    """

    def scale(updates: Params, params: Params | None = None) -> Params:
        return {name: value * rate_share(name, config, layers) for name, value in updates.items()}

    return optax.chain(loop.make_optimizer(config, decayed), optax.stateless(scale))


def rate_share(name: str, config: FinetuneOptimizer, layers: int) -> float:
    """The ratio of a parameter's learning rate to --lr: d^(layers − 1 − i) in layer i, d^layers in the embeddings.

    Examples:
        >>> config = FinetuneOptimizer(layerwise_decay=0.5)
        >>> [rate_share(f"encoder.{part}.x", config, 2) for part in ("embeddings", "blocks.0", "blocks.1", "norm")]
        [0.25, 0.5, 1.0, 1.0]
    """
    if not name.startswith(ENCODER):
        return 1.0 if config.head_lr is None else config.head_lr / config.lr
    part, *rest = name.removeprefix(ENCODER).split(".")
    if part == "blocks":
        return config.layerwise_decay ** (layers - 1 - int(rest[0]))
    # Beside the blocks: a final normalisation learns like the last layer, everything else like the embeddings.
    return 1.0 if part == "norm" else config.layerwise_decay**layers


def describe_model(config: FinetuneConfig, functional: Functional, layers: int, width: int) -> Sequence[str]:
    """The lines about the model."""
    m = config.model
    total = sum(shape.size for shape in functional.shapes.values())
    head = f"{m.head} head"
    if m.head == "inceptive":
        convolutions = (
            f"kernels {' '.join(map(str, m.kernels))} of {m.filters} filters"
            if m.convolution
            else "no convolutions"
        )
        head = f"inceptive head: {convolutions}, attention {m.head_attention}, pooling {m.pooling}"
    injected = ""
    if m.attention is not None:
        where = (
            "all layers" if m.attention_layers is None else f"layers {' '.join(map(str, m.attention_layers))}"
        )
        injected = f", {m.attention} in {where}"
    frozen = ", frozen" if m.freeze_encoder else ""
    return [
        f"model    {m.encoder}: {layers} layers, {width} wide{injected}{frozen}; {head}",
        f"         {total:,} parameters, {functional.num_params():,} of them trained",
    ]
