"""Losses over whole sets of windows, and logits of whole sets of sequences, batch by batch, for every seed."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.data.batches import make_batch
from train.data.buckets import Buckets
from train.data.sequences import Sequences
from train.data.trees import Trees
from train.engine.functional import Functional, Params
from train.engine.loop import across_seeds, make_eval_step, prefix_losses
from train.engine.sharding import put_replicated, put_rows, settle


def make_evaluate(
    model: Functional, mesh: Mesh, *, seeds: int, batch_size: int, mode: str
) -> Callable[[Params, np.ndarray], list[float]]:
    """The function (params, windows (W, T + 1)) -> mean loss of each seed in nats per token.

    Every window counts once, whatever W is: the last batch is filled up with rows of weight 0.
    """
    step = jax.jit(
        make_eval_step(model, seeds=seeds, mode=mode), out_shardings=NamedSharding(mesh, PartitionSpec())
    )

    def evaluate(params: Params, windows: np.ndarray) -> list[float]:
        total = put_replicated(mesh, np.zeros(seeds, np.float32))
        for start in range(0, len(windows), batch_size):
            rows = windows[start : start + batch_size]
            weights = np.zeros(batch_size, np.float32)
            weights[: len(rows)] = 1
            rows = np.pad(rows, ((0, batch_size - len(rows)), (0, 0)))
            total = step(total, params, put_rows(mesh, rows), put_rows(mesh, weights))
            settle(total)
        return (np.asarray(total, np.float64) / len(windows)).tolist()

    return evaluate


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


def evaluate_prefixes(
    model: Functional, mesh: Mesh, params: Params, windows: np.ndarray, *, seeds: int
) -> list[float]:
    """Mean over windows and positions of `loop.prefix_losses`, of each seed."""

    def run(params: Params, windows: jax.Array) -> jax.Array:
        return across_seeds(lambda one: prefix_losses(model.apply, one, windows), seeds, "sequential")(params)

    step = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))
    losses = np.asarray(step(params, put_replicated(mesh, windows)), np.float64)
    return losses.mean(axis=(1, 2)).tolist()
