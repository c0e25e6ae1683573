"""Loss and accuracy on the questions of MQAR."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn_train.data.generators.mqar import NO_QUESTION
from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.engine.loop import across_seeds, cross_entropy
from jaxattn_train.engine.sharding import put_replicated

Rows = Mapping[str, Any]
"""From `recall_rows`."""


def answer_loss(
    model: Functional, params: Params, batch: Rows, key: PRNGKeyArray
) -> tuple[Float[Array, ""], Params]:
    """The mean over all questions of the batch, in nats."""
    logits, held = model.train_apply(params, batch["tokens"], key)
    asked = batch["targets"] != NO_QUESTION
    losses = cross_entropy(logits, jnp.where(asked, batch["targets"], 0))
    return (losses * asked).sum() / asked.sum(), held


def make_accuracy(
    model: Functional, mesh: Mesh, *, seeds: int, mode: str
) -> Callable[[Params, Mapping[int, Rows]], dict[int, list[float]]]:
    """The function (params, rows by number of pairs) -> accuracy of each seed by number of pairs.

    An answer is right if it has the largest logit of the whole vocabulary.
    """

    def accuracy(params: Params, rows: Rows) -> Array:
        asked = rows["targets"] != NO_QUESTION
        right = model.apply(params, rows["tokens"]).argmax(-1) == rows["targets"]
        return (right & asked).sum() / asked.sum()

    def run(params: Params, rows: Rows) -> Array:
        return across_seeds(lambda one: accuracy(one, rows), seeds, mode)(params)

    compiled = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def measure(params: Params, sets: Mapping[int, Rows]) -> dict[int, list[float]]:
        found = {}
        for pairs, rows in sets.items():
            placed = {name: put_replicated(mesh, array) for name, array in rows.items()}
            found[pairs] = np.asarray(compiled(params, placed), np.float64).tolist()
        return found

    return measure
