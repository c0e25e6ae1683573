"""One step of training as a pure function of the training state; every array has a leading axis of seeds."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxattn_train.cli.options import OptimizerOptions
from jaxattn_train.engine.functional import Functional, Params

NEVER = -1


class TrainState(NamedTuple):
    """Everything that changes in training; no random state: keys are folded from (seed, step)."""

    params: Params
    """Parameters by path, each (seeds, ...)."""
    opt_state: Any
    step: Int[Array, " seeds"]
    """Updates so far."""
    failed: Int[Array, " seeds"]
    """The first step whose loss, gradient or parameters were not finite, or NEVER. Nothing changes after it."""


class StepMetrics(NamedTuple):
    """What a step reports, one number a seed."""

    loss: Float[Array, " seeds"]
    grad_norm: Float[Array, " seeds"]
    failed: Int[Array, " seeds"]
    """As in the state after the step."""


def cross_entropy(logits: Float[Array, "*B T V"], targets: Int[Array, "*B T"]) -> Float[Array, "*B T"]:
    """−log p(target) in nats, computed in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)


def learning_rate(config: OptimizerOptions) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then cosine or linear decay to 0 at the last step."""
    warmup = config.warmup_steps
    if config.schedule == "linear":
        up = optax.linear_schedule(0.0, config.lr, warmup)
        down = optax.linear_schedule(config.lr, 0.0, config.steps - warmup)
        return optax.join_schedules([up, down], [warmup])
    return optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, config.steps, 0.0)


def make_optimizer(config: OptimizerOptions, decayed: Collection[str]) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, whose weight decay applies to the parameters named in `decayed`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate(config),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: {name: name in decayed for name in params},
        ),
    )


def across_seeds(fn: Callable[..., Any], seeds: int, mode: str) -> Callable[..., Any]:
    """Maps `fn`, which computes for one seed, over the leading axis of its arguments.

    Args:
        fn: computes for one seed.
        seeds: how many there are.
        mode: "vmap" computes them side by side, "sequential" one after the other (memory of one at a time).
    """
    if seeds == 1:
        return lambda *args: jax.tree.map(lambda x: x[None], fn(*jax.tree.map(lambda x: x[0], args)))
    if mode == "vmap":
        return jax.vmap(fn)
    return lambda *args: jax.lax.map(lambda arguments: fn(*arguments), args)


def seed_keys(seeds: Sequence[int], purpose: int) -> PRNGKeyArray:
    """One key a seed; `purpose` separates the initial parameters (0) from dropout (1)."""
    return jnp.stack([jax.random.fold_in(jax.random.key(seed), purpose) for seed in seeds])


def make_init(
    model: Functional, optimizer: optax.GradientTransformation, seeds: Sequence[int]
) -> Callable[[], TrainState]:
    """The function that returns the state of step 0."""

    def init_one(key: PRNGKeyArray) -> TrainState:
        params = model.init(key)
        learned, _ = model.split(params)
        return TrainState(params, optimizer.init(learned), jnp.int32(0), jnp.int32(NEVER))

    return lambda: across_seeds(init_one, len(seeds), "vmap")(seed_keys(seeds, 0))


Loss = Callable[[Functional, Params, Any, PRNGKeyArray], tuple[Float[Array, ""], Params]]
"""(model, params, batch, dropout key) -> (mean loss over the rows of the batch, `held` arrays after the step)."""


def make_train_step(
    model: Functional,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    seeds: Sequence[int],
    accumulate: int = 1,
    mode: str = "vmap",
) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """The function (state, batch) -> (state, metrics) of one update.

    With `accumulate` = k the batch is split into k micro-batches whose gradients are averaged: the same gradient with
    the activations of B/k rows.

    A step that is not finite changes nothing but `failed`, so the parameters stay good.

    Args:
        model: the model as functions.
        optimizer: the update rule.
        loss: what is minimised.
        seeds: of the dropout, one for each leading index.
        accumulate: k; must divide B.
        mode: see `across_seeds`.

    Returns:
        The step function, to be jitted. A batch is an array (seeds, B, ...) or a tree of such.
    """

    def loss_of(learned: Params, held: Params, batch: Any, key: PRNGKeyArray) -> tuple[Array, Params]:
        return loss(model, learned | held, batch, key)

    def gradient(params: Params, batch: Any, key: PRNGKeyArray) -> tuple[Array, Params, Params]:
        learned, held = model.split(params)
        loss_and_gradient = jax.value_and_grad(loss_of, has_aux=True)
        if accumulate == 1:
            (loss, held), grads = loss_and_gradient(learned, held, batch, key)
            return loss, grads, held
        # Row r of a device goes to micro-batch r mod k, so that no row moves between devices.
        micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(carry, part):
            total, held = carry
            index, rows = part
            (loss, held), grads = loss_and_gradient(learned, held, rows, jax.random.fold_in(key, index))
            return (jax.tree.map(jnp.add, total, (loss, grads)), held), None

        zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, learned))
        (total, held), _ = jax.lax.scan(add, (zeros, held), (jnp.arange(accumulate), micro))
        loss, grads = jax.tree.map(lambda x: x / accumulate, total)
        return loss, grads, held

    def step_one(state: TrainState, batch: Any, key: PRNGKeyArray) -> tuple[TrainState, StepMetrics]:
        loss, grads, held = gradient(state.params, batch, jax.random.fold_in(key, state.step))
        grad_norm = optax.tree.norm(grads)
        before, _ = model.split(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, before)
        learned = optax.apply_updates(before, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(learned))
        good = finite & (state.failed == NEVER)
        kept = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (learned | held, opt_state),
            (state.params, state.opt_state),
        )
        failed = jnp.where(finite | (state.failed != NEVER), state.failed, state.step)
        return TrainState(kept[0], kept[1], state.step + 1, failed), StepMetrics(loss, grad_norm, failed)

    run = across_seeds(step_one, len(seeds), mode)
    return lambda state, batch: run(state, batch, seed_keys(seeds, 1))
