"""Sequence classifiers as functions of their parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from jaxattn.models import SequenceClassifier
from jaxattn_train.cli.options import TaskConfig
from jaxattn_train.data.batches import Batch
from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.engine.functional import Functional, backbone, functionalize


def sequence_classifier(
    config: TaskConfig,
    data: ClassificationData,
    example: Batch,
    *,
    kind: Any = SequenceClassifier,
    fields: Mapping[str, Any] | None = None,
    **more: Any,
) -> Functional:
    """The configured classifier.

    Args:
        config: its `model` are `ClassifierOptions`.
        data: numbers of ids, classes and tokens.
        example: a batch (seeds, B, ...) to trace the model with.
        kind: the class of the model.
        fields: further fields of its backbone.
        **more: further arguments of the class.

    Raises:
        UserError: what the model itself rejects, such as an unknown mechanism.
    """
    m = config.model

    def build(key: PRNGKeyArray) -> nnx.Module:
        body = backbone(m, max_length=data.max_length, **(fields or {}))
        rngs = nnx.Rngs(params=key)
        return kind(data.vocab_size, len(data.classes), body, pooling=m.pooling, rngs=rngs, **more)

    first = jax.tree.map(lambda x: x[0], example)
    inputs = {"token_mask": first["mask"], "tree": first["tree"]}
    return functionalize(build, first["tokens"], dropout=m.dropout > 0, **inputs)


def describe_classifier(config: TaskConfig, data: ClassificationData, model: Functional) -> Sequence[str]:
    """One line about the model."""
    m = config.model
    return [
        f"model    {m.attention}, positions {m.positions}, pooling {m.pooling}: {m.num_layers} layers, "
        f"{m.num_heads} heads, features {m.features}, at most {data.max_length} tokens; "
        f"{model.num_params():,} parameters"
    ]
