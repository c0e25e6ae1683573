"""Losses of a language model: of training batches, of whole validation windows, and of prefixes as in generation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxattn_train.engine.functional import Functional, Params
from jaxattn_train.engine.loop import across_seeds, cross_entropy
from jaxattn_train.engine.sharding import put_replicated, put_rows, settle


def next_token_loss(
    model: Functional, params: Params, tokens: Int[Array, "B T1"], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Params]:
    """The mean over all targets in nats per token."""
    logits, held = model.train_apply(params, tokens[:, :-1], key)
    return cross_entropy(logits, tokens[:, 1:]).mean(), held


def next_token_rows(model: Functional, params: Params, tokens: Int[Array, "B T1"]) -> Float[Array, " B"]:
    """The mean over the targets of each window in nats per token."""
    return cross_entropy(model.apply(params, tokens[:, :-1]), tokens[:, 1:]).mean(-1)


def make_evaluate(
    model: Functional,
    mesh: Mesh,
    *,
    seeds: int,
    batch_size: int,
    mode: str,
    row_losses: Callable[[Functional, Params, Array], Array] = next_token_rows,
) -> Callable[[Params, np.ndarray], list[float]]:
    """The function (params, windows (W, ...)) -> mean over the windows of `row_losses`, of each seed.

    Every window counts once, whatever W is: the last batch is filled up with rows of weight 0.
    """

    def losses(params: Params, tokens: Array, weights: Array) -> Array:
        return (row_losses(model, params, tokens) * weights).sum()

    # The running total is an argument and a result so that batches run one after the other: independent computations
    # with collectives could start in different orders on different processes, and deadlock.
    def step(total: Array, params: Params, tokens: Array, weights: Array) -> Array:
        return total + across_seeds(lambda one: losses(one, tokens, weights), seeds, mode)(params)

    compiled = jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def evaluate(params: Params, windows: np.ndarray) -> list[float]:
        total = put_replicated(mesh, np.zeros(seeds, np.float32))
        for start in range(0, len(windows), batch_size):
            rows = windows[start : start + batch_size]
            weights = np.zeros(batch_size, np.float32)
            weights[: len(rows)] = 1
            rows = np.pad(rows, ((0, batch_size - len(rows)), *((0, 0) for _ in rows.shape[1:])))
            total = compiled(total, params, put_rows(mesh, rows), put_rows(mesh, weights))
            settle(total)
        return (np.asarray(total, np.float64) / len(windows)).tolist()

    return evaluate


def prefix_losses(
    apply: Callable[..., Float[Array, "B T V"]], params: Params, windows: Int[Array, "W T1"]
) -> Float[Array, "W T"]:
    """The loss of every position computed on its prefix alone: what a model faces when it generates.

    For window x and position i the model reads x[: i + 1], right-padded and masked, and only the loss of its last
    position counts. A causal model gives the same numbers as on whole windows; one whose positions see
    later tokens does not.

    Args:
        apply: (params, tokens, *, token_mask) -> logits.
        params: of one seed.
        windows: T inputs and the last target.

    Returns:
        Losses in nats, float32.
    """
    length = windows.shape[1] - 1
    mask: Bool[Array, "T T"] = jnp.tril(jnp.ones((length, length), bool))

    def one(window: Int[Array, " T1"]) -> Float[Array, " T"]:
        prefixes = jnp.where(mask, window[:-1], 0)
        logits = apply(params, prefixes, token_mask=mask)
        last = jnp.diagonal(logits, axis1=0, axis2=1).T  # prefix i, position i: (T, V)
        return cross_entropy(last, window[1:])

    return jax.lax.map(one, windows)


def evaluate_prefixes(
    model: Functional, mesh: Mesh, params: Params, windows: np.ndarray, *, seeds: int
) -> list[float]:
    """Mean over windows and positions of `prefix_losses`, of each seed."""

    def run(params: Params, windows: jax.Array) -> jax.Array:
        return across_seeds(lambda one: prefix_losses(model.apply, one, windows), seeds, "sequential")(params)

    step = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))
    losses = np.asarray(step(params, put_replicated(mesh, windows)), np.float64)
    return losses.mean(axis=(1, 2)).tolist()
