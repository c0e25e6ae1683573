"""One step of training and of evaluation, as pure functions; every array has a leading axis of seeds."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from train.engine.functional import Functional, Params
from train.tasks.charlm.config import OptimizerConfig

NEVER = -1


class TrainState(NamedTuple):
    """All that changes while training; no random state: keys are folded from (seed, step)."""

    params: Params
    """Parameters by path, each (seeds, ...)."""
    opt_state: Any
    step: Int[Array, " seeds"]
    """Updates made so far."""
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


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then a cosine, or a straight line, down to 0 at the last step."""
    if config.shape() == "linear":
        up = optax.linear_schedule(0.0, config.lr, config.warmup)
        down = optax.linear_schedule(config.lr, 0.0, config.steps - config.warmup)
        return optax.join_schedules([up, down], [config.warmup])
    return optax.warmup_cosine_decay_schedule(0.0, config.lr, config.warmup, config.steps, 0.0)


def make_optimizer(config: OptimizerConfig, decayed: Collection[str]) -> optax.GradientTransformation:
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
    """Runs `fn` for every seed, over the leading axis of all its arguments.

    Args:
        fn: computes for one seed.
        seeds: how many there are.
        mode: "vmap" computes them side by side, "sequential" one after the other (memory of one at a time).

    Returns:
        The function of arguments with a leading seed axis; its results have one too.
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
    """The function that makes the state of step 0."""

    def init_one(key: PRNGKeyArray) -> TrainState:
        params = model.init(key)
        learned, _ = model.split(params)
        return TrainState(params, optimizer.init(learned), jnp.int32(0), jnp.int32(NEVER))

    return lambda: across_seeds(init_one, len(seeds), "vmap")(seed_keys(seeds, 0))


Loss = Callable[[Functional, Params, Any, PRNGKeyArray], tuple[Float[Array, ""], Params]]
"""(model, params, batch, dropout key) -> (the mean loss over the rows of the batch, the arrays held for the next)."""


def next_token_loss(
    model: Functional, params: Params, tokens: Int[Array, "B T1"], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Params]:
    """The mean over all targets in nats per token."""
    logits, held = model.train_apply(params, tokens[:, :-1], key)
    return cross_entropy(logits, tokens[:, 1:]).mean(), held


def class_loss(
    model: Functional, params: Params, batch: dict[str, Any], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Params]:
    """The weighted mean over the rows in nats per example; see `train.data.batches`."""
    logits, held = model.train_apply(
        params, batch["tokens"], key, token_mask=batch["mask"], tree=batch["tree"]
    )
    return (batch["weights"] * cross_entropy(logits, batch["labels"])).mean(), held


def make_train_step(
    model: Functional,
    optimizer: optax.GradientTransformation,
    *,
    seeds: Sequence[int],
    accumulate: int = 1,
    mode: str = "vmap",
    loss: Loss = next_token_loss,
) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """The function (state, batch) -> (state, metrics) of one update.

    With `accumulate` = k the batch is cut into k micro-batches whose gradients are averaged: the same gradient with
    the activations of B/k rows.

    A step that is not finite changes nothing but `failed`, so the parameters stay good.

    Args:
        model: the model as functions.
        optimizer: the update rule.
        seeds: of the dropout; one a leading index.
        accumulate: k; must divide B.
        mode: see `across_seeds`.
        loss: what is made small.

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
        # Row r of a device goes to micro-batch r mod k, so that no row has to move between devices.
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


def make_eval_step(
    model: Functional, *, seeds: int, mode: str = "vmap"
) -> Callable[..., Float[Array, " seeds"]]:
    """The function (total, params, tokens (B, T + 1), weights (B,)) -> total + weighted sum of the rows' mean losses.

    `total` holds a number a seed. Because it goes in and comes out, batches run one after the other: independent
    computations with collectives in them may meet in different orders on different processes, and wait forever.
    """

    def losses(params: Params, tokens: Array, weights: Array) -> Array:
        per_row = cross_entropy(model.apply(params, tokens[:, :-1]), tokens[:, 1:]).mean(-1)
        return (per_row * weights).sum()

    def run(total: Array, params: Params, tokens: Array, weights: Array) -> Array:
        return total + across_seeds(lambda one: losses(one, tokens, weights), seeds, mode)(params)

    return run


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
