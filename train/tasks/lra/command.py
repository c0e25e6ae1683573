"""`python -m train lra`: trains a classifier on a task of the Long Range Arena."""

import shlex
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from jaxattn.models import BackboneConfig, PairClassifier, SequenceClassifier
from train.data.batches import Batch
from train.engine.functional import Functional, compute_dtype, take_apart
from train.tasks.classify.training import Recipe, train_classifier
from train.tasks.lra.config import LRARunConfig, parse
from train.tasks.lra.data import LRAData, as_classification
from train.tasks.lra.registry import LRA_TASKS


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    config = parse(argv)
    words = [word for word in argv if word != "--overwrite"]
    command = shlex.join(["python", "-m", "train", "lra", *words])
    recipe = Recipe(stratify=config.optimizer.stratify)
    return train_classifier(
        config, load_data(config), command=command, make_model=lra_classifier, recipe=recipe
    )


def load_data(config: LRARunConfig) -> LRAData:
    """Reads or generates the configured data.

    Raises:
        UserError: a file is missing or damaged, or there is less than asked for.
    """
    task = LRA_TASKS[config.task]
    return as_classification(task, task.load(config.data_config()), config.data.max_length)


def lra_classifier(config: LRARunConfig, data: LRAData, example: Batch) -> Functional:
    """The configured classifier, of sequences or of pairs, as functions of its parameters.

    Args:
        config: sizes, mechanism, positions, dtype of the computation.
        data: numbers of ids, classes and tokens.
        example: a batch (seeds, B, ...) to try the model on.

    Raises:
        UserError: what the model itself rejects.
    """
    m = config.model
    kind: Any = PairClassifier if data.two_tower else SequenceClassifier

    def build(key: PRNGKeyArray) -> nnx.Module:
        backbone = BackboneConfig(
            num_layers=m.num_layers,
            num_heads=m.num_heads,
            hidden_size=m.features,
            max_length=data.max_length,
            mechanism=m.attention,
            positions=m.positions,
            mlp_ratio=m.mlp_ratio,
            qk_norm=m.qk_norm,
            dropout=m.dropout,
            dtype=compute_dtype(m.dtype),
        )
        return kind(
            data.vocab_size,
            len(data.classes),
            backbone,
            pooling=m.pooling,
            head_size=m.head_features,
            rngs=nnx.Rngs(params=key),
        )

    first: dict[str, Any] = jax.tree.map(lambda x: x[0], example)
    return take_apart(build, first["tokens"], dropout=m.dropout > 0, token_mask=first["mask"], tree=None)
