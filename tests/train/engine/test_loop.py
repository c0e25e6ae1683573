import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn_train.cli.options import OptimizerOptions
from jaxattn_train.engine import loop
from jaxattn_train.tasks.charlm.config import ModelConfig
from jaxattn_train.tasks.charlm.evaluation import next_token_loss, prefix_losses
from jaxattn_train.tasks.charlm.model import language_model

MODEL = ModelConfig(attention="softmax", num_layers=1, num_heads=2, features=16, context_length=8)
OPTIMIZER = OptimizerOptions(steps=20, warmup=2, lr=1e-2)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 8, 9)).astype(np.int32)


def _run(seeds, tokens, *, dropout=0.0, steps=3, **kwargs):
    model = language_model(dataclasses.replace(MODEL, dropout=dropout), 11)
    update = loop.make_optimizer(OPTIMIZER, model.decayed)
    state = jax.jit(loop.make_init(model, update, seeds))()
    step = jax.jit(loop.make_train_step(model, update, next_token_loss, seeds=seeds, **kwargs))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, tokens)
        losses.append(metrics.loss)
    return state, np.stack(losses)


@pytest.fixture(scope="module")
def alone():
    """Seed 5, by itself, with dropout."""
    return _run((5,), TOKENS[1:2], dropout=0.2)


def _close(a, b, **kwargs):
    for name in a:
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **kwargs)


@pytest.fixture(scope="module")
def plain_losses():
    """Seed 0, without dropout."""
    return _run((0,), TOKENS[:1], steps=20)[1]


def test_the_loss_starts_near_uniform_and_falls(plain_losses):
    assert abs(plain_losses[0, 0] - np.log(11)) < 0.1
    assert plain_losses[-1, 0] < plain_losses[0, 0] - 0.3


def test_cross_entropy_is_the_negative_log_likelihood_in_float32():
    logits = np.random.default_rng(1).normal(size=(2, 3, 5))
    targets = np.array([[0, 1, 2], [3, 4, 0]])
    shifted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(shifted, targets[..., None], -1))[..., 0]
    loss = loop.cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(targets))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, atol=0.03)


def test_accumulated_gradients_equal_the_big_batch(plain_losses):
    _, losses = _run((0,), TOKENS[:1], steps=6, accumulate=4)
    np.testing.assert_allclose(losses, plain_losses[:6], rtol=1e-5)


@pytest.mark.parametrize("mode", ["vmap", "sequential"])
@pytest.mark.slow
def test_a_seed_does_not_depend_on_its_neighbours(alone, mode):
    state, losses = _run((4, 5, 6), TOKENS, dropout=0.2, mode=mode)
    np.testing.assert_allclose(losses[:, 1], alone[1][:, 0], rtol=1e-5)
    _close({k: v[1:2] for k, v in state.params.items()}, alone[0].params, atol=2e-4)
    assert not np.allclose(losses[:, 0], losses[:, 1])


def test_dropout_differs_between_steps_and_is_off_in_evaluation():
    model = language_model(dataclasses.replace(MODEL, dropout=0.5), 11)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jnp.asarray(TOKENS[0, :, :-1])
    train = jax.jit(lambda key: model.apply(params, tokens, dropout_key=key))
    assert not np.allclose(train(jax.random.key(0)), train(jax.random.key(1)))
    plain = language_model(MODEL, 11).apply(params, tokens)
    np.testing.assert_array_equal(model.apply(params, tokens), plain)


def test_only_matrices_decay():
    model = language_model(
        dataclasses.replace(MODEL, attention="softmax+gate=running", positions="morlet:learned"), 11
    )
    rest = {name.rpartition(".")[2] for name in set(model.shapes) - model.decayed}
    assert all(name.rpartition(".")[2] in ("kernel", "embedding") for name in model.decayed), model.decayed
    assert {"alpha", "tau", "log_omega", "log_sigma", "bias", "scale"} <= rest


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "fourier"])
@pytest.mark.few(1)
def test_sibling_bias_trains_and_does_not_decay(kind):
    """Its frequencies are held as they are; a bias is no matrix to shrink."""
    model = language_model(dataclasses.replace(MODEL, attention=f"tree:4x2:bias={kind}"), 11)
    assert not {name for name in model.decayed if ".mechanism." in name}
    assert {name.rpartition(".")[2] for name in model.held} == (
        {"frequencies"} if kind != "learned" else set()
    )
    update = loop.make_optimizer(OPTIMIZER, model.decayed)
    state = jax.jit(loop.make_init(model, update, (0,)))()
    step = jax.jit(loop.make_train_step(model, update, next_token_loss, seeds=(0,)))
    after, metrics = step(step(state, TOKENS[:1])[0], TOKENS[:1])
    assert np.isfinite(metrics.loss).all() and after.failed == loop.NEVER
    bias = "decoder.blocks.0.attention.mechanism.bias"
    assert abs(after.params[f"{bias}.weights"]).max() > 0
    for name in model.held:
        np.testing.assert_array_equal(after.params[name], state.params[name])


def test_decay_shrinks_matrices_and_nothing_else():
    update = loop.make_optimizer(dataclasses.replace(OPTIMIZER, weight_decay=0.5, warmup=0), {"a.kernel"})
    params = {"a.kernel": jnp.ones((2, 2)), "a.bias": jnp.ones(2), "gate.alpha": jnp.ones((1, 2))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = update.update(zeros, update.init(params), params)
    assert (updates["a.kernel"] < 0).all()
    assert not updates["a.bias"].any()
    assert not updates["gate.alpha"].any()


def test_learning_rate_warms_up_and_falls_to_zero():
    schedule = loop.learning_rate(OPTIMIZER)
    rates = [float(schedule(step)) for step in (0, 1, 2, 11, 20)]
    np.testing.assert_allclose(rates, [0, 0.005, 0.01, 0.005, 0], atol=1e-8)


def test_a_step_that_is_not_finite_changes_nothing():
    functional = language_model(MODEL, 11)
    update = loop.make_optimizer(OPTIMIZER, functional.decayed)
    state = jax.jit(loop.make_init(functional, update, (0, 1)))()
    poison = {name: value.at[1].set(jnp.nan) for name, value in state.params.items() if name == "embedding"}
    step = jax.jit(loop.make_train_step(functional, update, next_token_loss, seeds=(0, 1)))
    state = state._replace(params=state.params | poison)
    after, metrics = step(state, TOKENS[:2])
    again, _ = step(after, TOKENS[:2])
    assert metrics.failed.tolist() == [loop.NEVER, 0]
    assert again.failed.tolist() == [loop.NEVER, 0]
    for name, value in state.params.items():
        np.testing.assert_array_equal(value[1], again.params[name][1])
    chex.assert_tree_all_finite(jax.tree.map(lambda leaf: leaf[1], again.opt_state))


def _prefix_and_whole(**changes):
    model = language_model(dataclasses.replace(MODEL, **changes), 11)
    params = jax.jit(model.init)(jax.random.key(0))
    windows = jnp.asarray(TOKENS[0, :3])
    whole = jax.jit(lambda p, w: loop.cross_entropy(model.apply(p, w[:, :-1]), w[:, 1:]))(params, windows)
    return jax.jit(lambda p, w: prefix_losses(model.apply, p, w))(params, windows), whole


@pytest.mark.parametrize("attention", ["softmax", "softmax+gate=running", "softmax+gate=prefix"])
@pytest.mark.few(1)
def test_causal_models_lose_the_same_on_prefixes(attention):
    prefix, whole = _prefix_and_whole(attention=attention)
    np.testing.assert_allclose(prefix, whole, atol=1e-5)


def test_a_leaking_model_is_caught_by_prefixes():
    prefix, whole = _prefix_and_whole(attention="softmax+gate=sequence", allow_leak=True)
    np.testing.assert_allclose(prefix[:, -1], whole[:, -1], atol=1e-5)
    assert abs(prefix[:, :-1] - whole[:, :-1]).max() > 1e-4
