import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxattn_train.cli.options import OptimizerOptions
from jaxattn_train.engine import loop, sharding
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.charlm.config import ModelConfig
from jaxattn_train.tasks.charlm.evaluation import evaluate_prefixes, make_evaluate, next_token_loss
from jaxattn_train.tasks.charlm.model import language_model

MODEL = ModelConfig(
    attention="softmax+gate=running", num_layers=1, num_heads=2, features=16, context_length=8
)
SEEDS = (0, 1)
TOKENS = np.random.default_rng(0).integers(0, 11, (4, 2, 16, 9)).astype(np.int32)


def _mesh(data, fsdp):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return jax.sharding.Mesh(devices, sharding.BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def _train(mesh):
    model = sharding.gather_before_use(language_model(MODEL, 11), mesh)
    update = loop.make_optimizer(OptimizerOptions(steps=20, warmup=2, lr=1e-2), model.decayed)
    init = loop.make_init(model, update, SEEDS)
    specs = sharding.param_specs(model.axes, model.shapes, mesh.shape["fsdp"])
    shardings = sharding.tree_shardings(jax.eval_shape(init), specs, mesh)
    state = jax.jit(init, out_shardings=shardings)()
    step = jax.jit(
        loop.make_train_step(model, update, next_token_loss, seeds=SEEDS), out_shardings=(shardings, None)
    )
    losses = []
    for tokens in TOKENS:
        state, metrics = step(state, sharding.put_batch(mesh, tokens, 16))
        losses.append(np.asarray(metrics.loss))
    evaluate = make_evaluate(model, mesh, seeds=2, batch_size=8, mode="vmap")
    windows = TOKENS[0, 0, :13]  # not a multiple of the batch
    prefixes = evaluate_prefixes(model, mesh, state.params, windows, seeds=2)
    return state, np.stack(losses), evaluate(state.params, windows), prefixes


def test_losses_are_the_same_on_every_mesh():
    _, losses, evaluated, prefixes = _train(_mesh(1, 1))
    np.testing.assert_allclose(evaluated, prefixes, rtol=1e-5)
    state, others, other_evaluated, other_prefixes = _train(_mesh(2, 2))
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    np.testing.assert_allclose(evaluated, other_evaluated, rtol=1e-4)
    np.testing.assert_allclose(prefixes, other_prefixes, rtol=1e-4)
    embedding = state.params["embedding"]
    assert embedding.sharding.spec == PartitionSpec(None, None, "fsdp")
    assert embedding.addressable_shards[0].data.shape == (2, 11, 8)
    moments = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, dict))
    assert any(
        isinstance(m, dict) and m["embedding"].sharding.spec == embedding.sharding.spec for m in moments
    )


def test_every_matrix_is_split_where_it_divides():
    model = language_model(MODEL, 11)
    specs = sharding.param_specs(model.axes, model.shapes, fsdp=2)
    for name in model.shapes:
        if name.endswith(("kernel", "embedding")):
            assert "fsdp" in specs[name], name
    assert not any("fsdp" in spec for spec in sharding.param_specs(model.axes, model.shapes, fsdp=1).values())
    assert sharding.param_specs({"w": ("embed", "vocab")}, {"w": np.zeros((3, 4))}, 2)["w"] == PartitionSpec(
        None, None, "fsdp"
    )


def test_numbers_that_do_not_divide_are_named():
    assert dict(sharding.make_mesh(2, batch_size=16, accumulate=2).shape) == {"data": 4, "fsdp": 2}
    with pytest.raises(UserError, match="--fsdp must divide the number of devices, 8; got 3"):
        sharding.make_mesh(3, batch_size=16, accumulate=1)
    with pytest.raises(UserError, match="8 x 4; got 16"):
        sharding.make_mesh(1, batch_size=16, accumulate=4)


def test_one_process_reads_every_row():
    assert sharding.local_rows(_mesh(4, 2), 16) == slice(0, 16)
