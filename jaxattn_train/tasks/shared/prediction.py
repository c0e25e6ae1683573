"""Logits of whole parts of classification data, batch by batch, for every seed."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxattn_train.data.batches import make_batch
from jaxattn_train.data.buckets import Buckets
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.data.trees import Trees
from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.engine.loop import across_seeds
from jaxattn_train.engine.sharding import put_rows


def make_predict(
    model: Functional, mesh: Mesh, *, seeds: int, mode: str
) -> Callable[[Params, Sequences, Trees | None, Buckets], np.ndarray]:
    """The function (params, part, its trees, its buckets) -> logits (seeds, examples, classes) in float32."""

    def run(params: Params, tokens: jax.Array, mask: jax.Array, tree: Any) -> jax.Array:
        return across_seeds(lambda one: model.apply(one, tokens, token_mask=mask, tree=tree), seeds, mode)(
            params
        )

    step = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def predict(params: Params, part: Sequences, trees: Trees | None, buckets: Buckets) -> np.ndarray:
        found: np.ndarray | None = None
        for chosen in buckets.in_order():
            batch = make_batch(part, trees, chosen, buckets.batch_size)
            inputs = put_rows(mesh, (batch["tokens"], batch["mask"], batch["tree"]))
            # Waiting for each also keeps collectives in one order on all processes.
            logits = np.asarray(step(params, *inputs), np.float32)
            if found is None:
                found = np.empty((seeds, len(part), logits.shape[-1]), np.float32)
            found[:, chosen.rows] = logits[:, : len(chosen.rows)]
        assert found is not None, "Buckets hold at least one example"
        return found

    return predict
