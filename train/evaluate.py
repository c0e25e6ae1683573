"""Loss over whole sets of windows, batch by batch, for every seed."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.functional import Functional, Params
from train.loop import across_seeds, make_eval_step, prefix_losses
from train.sharding import put_replicated, put_rows, settle


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


def evaluate_prefixes(
    model: Functional, mesh: Mesh, params: Params, windows: np.ndarray, *, seeds: int
) -> list[float]:
    """Mean over windows and positions of `loop.prefix_losses`, of each seed."""

    def run(params: Params, windows: jax.Array) -> jax.Array:
        return across_seeds(lambda one: prefix_losses(model.apply, one, windows), seeds, "sequential")(params)

    step = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))
    losses = np.asarray(step(params, put_replicated(mesh, windows)), np.float64)
    return losses.mean(axis=(1, 2)).tolist()
