import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxattn.core.parameters import LAYERS
from jaxattn_train.cli.options import OptimizerOptions
from jaxattn_train.engine import loop, sharding
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.charlm.config import ModelConfig
from jaxattn_train.tasks.charlm.evaluation import evaluate_prefixes, make_evaluate, next_token_loss
from jaxattn_train.tasks.charlm.model import language_model

MODEL = ModelConfig(
    attention="softmax+gate=running",
    num_layers=2,
    num_heads=2,
    features=16,
    context_length=8,
    scan_layers="on",
)
SEEDS = (0, 1)
TOKENS = np.random.default_rng(0).integers(0, 11, (4, 2, 16, 9)).astype(np.int32)


def _mesh(*sizes):
    """Of data, fsdp, tensor and sequence; those that are left out have size 1."""
    sizes += (1,) * (len(sharding.AXES) - len(sizes))
    devices = np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes)
    return jax.sharding.Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def _train(mesh, config=MODEL):
    """(state after some steps, losses of each, loss of an evaluation, the same prefix by prefix)."""
    model = sharding.partitioned(language_model(config, 11))
    update = loop.make_optimizer(OptimizerOptions(steps=20, warmup=2, lr=1e-2), model.decayed)
    init = loop.make_init(model, update, SEEDS)
    specs = sharding.param_specs(model.axes, model.shapes, mesh)
    shardings = sharding.tree_shardings(jax.eval_shape(init), specs, mesh)
    state = jax.jit(init, out_shardings=shardings)()
    step = jax.jit(
        loop.make_train_step(model, update, next_token_loss, seeds=SEEDS), out_shardings=(shardings, None)
    )
    losses = []
    for tokens in TOKENS:
        state, metrics = step(state, sharding.put_batch(mesh, tokens, 16))
        losses.append(np.asarray([metrics.loss, metrics.grad_norm]))
    evaluate = make_evaluate(model, mesh, seeds=2, batch_size=8, mode="vmap")
    windows = TOKENS[0, 0, :13]  # not a multiple of the batch
    prefixes = evaluate_prefixes(model, mesh, state.params, windows, seeds=2)
    return state, np.stack(losses), evaluate(state.params, windows), prefixes


@pytest.mark.slow
def test_losses_are_the_same_on_every_mesh():
    _, losses, evaluated, prefixes = _train(_mesh(1, 1, 1))
    np.testing.assert_allclose(evaluated, prefixes, rtol=1e-5)
    state, others, other_evaluated, other_prefixes = _train(_mesh(2, 2, 2))
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    np.testing.assert_allclose(evaluated, other_evaluated, rtol=1e-4)
    np.testing.assert_allclose(prefixes, other_prefixes, rtol=1e-4)
    embedding, up = (state.params[name] for name in ("embedding", "decoder.blocks.stacked.mlp.up.kernel"))
    assert embedding.sharding.spec == PartitionSpec(None, None, "fsdp")  # 11 letters do not divide
    assert embedding.addressable_shards[0].data.shape == (2, 11, 8)
    assert up.sharding.spec == PartitionSpec(None, None, "fsdp", "tensor")
    moments = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, dict))
    assert any(
        isinstance(m, dict) and m["embedding"].sharding.spec == embedding.sharding.spec for m in moments
    )


@pytest.mark.parametrize(
    "attention",
    [
        "softmax+gate",
        "features:oprf-orf:16+forget",
        "tree:2x2x2+gate",
        "lags:2+alibi",
        "retention:gated",
        "linear+outgate",
    ],
)
@pytest.mark.slow
def test_tokens_cut_among_devices(attention):
    """Parameters after the steps too, which hold every gradient and every statistic."""
    # Equal tokens would have equal energies, whose gate is a step function of rounding errors.
    positions = "learned" if "gate" in attention.split("+") else "rotary"
    config = dataclasses.replace(MODEL, attention=attention, remat="dots", positions=positions)
    one, losses, *_ = _train(_mesh(1), config)
    for sizes in ((1, 1, 1, 2), (1, 1, 1, 4), (2, 1, 2, 2), (1, 2, 1, 4)):
        state, others, *_ = _train(_mesh(*sizes), config)
        np.testing.assert_allclose(losses[0], others[0], rtol=1e-5)
        np.testing.assert_allclose(losses, others, rtol=5e-4)
        for name, value in one.params.items():
            np.testing.assert_allclose(value, state.params[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "attention, message",
    [
        ("softmax+gate=prefix", "axis_name .* cannot be used here; got it with EnergyGated"),
        ("tree:3x3", "whole on every"),
    ],
)
def test_what_cannot_be_cut_is_named(attention, message):
    with pytest.raises(ValueError, match=message):
        _train(_mesh(1, 1, 1, 2), dataclasses.replace(MODEL, attention=attention))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "attention, scan",
    [
        ("softmax", "off"),
        *(
            (name, "on")
            for name in ("softmax", "features:oprf-orf:16", "tree:4x4", "lags:2", "retention:gated")
        ),
    ],
)
def test_mechanisms_on_meshes(attention, scan):
    """Parameters after the steps too, which hold every gradient, on 1, 2, 4 and 8 devices."""
    config = dataclasses.replace(MODEL, attention=attention, scan_layers=scan, remat="dots")
    one, losses, *_ = _train(_mesh(1, 1, 1), config)
    for sizes in ((2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2), (1, 4, 2)):
        state, others, *_ = _train(_mesh(*sizes), config)
        np.testing.assert_allclose(losses, others, rtol=1e-4)
        for name, value in one.params.items():
            np.testing.assert_allclose(value, state.params[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_parameters_gathered_in_two_steps(monkeypatch):
    """As on many TPUs. Parameters after the steps too, which hold every gradient."""
    one, losses, *_ = _train(_mesh(1))
    monkeypatch.setattr("jaxattn.nn.sharding._devices_a_step", lambda _: 2)
    for sizes in ((1, 8), (2, 4)):
        state, others, *_ = _train(_mesh(*sizes))
        np.testing.assert_allclose(losses, others, rtol=1e-4)
        for name, value in one.params.items():
            np.testing.assert_allclose(value, state.params[name], rtol=1e-3, atol=1e-4, err_msg=name)


def _collectives(mesh):
    """Of the gradient of a model: (kind, elements of the result) of every instruction."""
    model = sharding.partitioned(language_model(MODEL, 11))
    specs = sharding.param_specs(model.axes, model.shapes, mesh)
    params = {
        name: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*specs[name][1:]))
        )
        for name, x in model.shapes.items()
    }
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    tokens = jax.ShapeDtypeStruct((16, 8), np.int32, sharding=rows)
    gradient = jax.grad(lambda params, tokens: model.apply(params, tokens).sum())
    hlo = jax.jit(gradient).lower(params, tokens).compile().as_text()
    return re.findall(r"\[([\d,]*)\]\S* (all-gather|all-reduce|reduce-scatter|all-to-all)[\w-]*\(", hlo)


def test_layers_are_gathered_one_at_a_time():
    """No device ever holds the kernels of both layers whole, and no tokens are gathered."""
    gathered = [shape for shape, kind in _collectives(_mesh(2, 4, 1)) if kind == "all-gather"]
    assert "16,64" in gathered or "1,16,64" in gathered
    assert not any(shape.startswith("2,16,64") or shape.startswith("16,8,") for shape in gathered)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


def test_gradients_of_gathered_parameters_are_scattered():
    """Of scanned layers inside the scan, and of what is outside."""
    model, mesh = sharding.partitioned(language_model(MODEL, 12)), _mesh(2, 4, 1)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        gradient = jax.grad(lambda params, tokens: model.apply(params, tokens).sum())
        program = jax.make_jaxpr(gradient)(model.shapes, np.zeros((16, 8), np.int32))
    found = {
        (e.outvars[0].aval.shape, tuple(e.params["sharding"].spec))
        for e in _equations(program.jaxpr)
        if e.primitive.name == "sharding_constraint"
    }
    for name, (_, *spec) in sharding.param_specs(model.axes, model.shapes, mesh).items():
        scanned = LAYERS in model.axes[name]
        if "fsdp" in str(spec):
            assert (model.shapes[name].shape[scanned:], tuple(spec[scanned:])) in found, name


def test_every_matrix_is_split_where_it_divides():
    model = language_model(MODEL, 12)
    for sizes, axis in (((1, 2, 1), "fsdp"), ((1, 1, 2), "tensor")):
        specs = sharding.param_specs(model.axes, model.shapes, _mesh(*sizes))
        for name in model.shapes:
            if name == "embedding" or (name.endswith("kernel") and "mechanism" not in name):
                assert axis in specs[name], name
    specs = sharding.param_specs(model.axes, model.shapes, _mesh(1, 1, 1))
    assert all(entry is None for spec in specs.values() for entry in spec)


def test_numbers_that_do_not_divide_are_named():
    made = sharding.make_mesh("fsdp=2", batch_size=16, accumulate=2)
    assert dict(made.shape) == {"data": 4, "fsdp": 2, "tensor": 1, "sequence": 1}
    made = sharding.make_mesh("tensor=2,data=1,sequence=2,fsdp=2", batch_size=2, accumulate=1)
    assert dict(made.shape) == {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2}
    for axes, must in (("fsdp=3", "divide"), ("data=2,fsdp=2", "multiply to")):
        with pytest.raises(UserError, match=f"--mesh must {must} the number of devices, 8; got {axes}"):
            sharding.make_mesh(axes, batch_size=16, accumulate=1)
    with pytest.raises(UserError, match="--mesh tensor=3 splits no parameter"):
        abstract = jax.sharding.AbstractMesh((1, 1, 3, 1), sharding.AXES)
        sharding.param_specs({"kernel": ("embed", "heads")}, {"kernel": np.zeros((9, 4))}, abstract)
    with pytest.raises(UserError, match="8 x 1 x 4; got 16"):
        sharding.make_mesh("", batch_size=16, accumulate=4)
    for axes in ("expert=2", "fsdp", "fsdp=2,fsdp=2", "data=0"):
        with pytest.raises(UserError, match="--mesh must be sizes of data, fsdp, tensor"):
            sharding.make_mesh(axes, batch_size=16, accumulate=1)


def test_one_process_reads_every_row():
    assert sharding.local_rows(_mesh(4, 2, 1), 16) == slice(0, 16)
