"""How parameters, their gradients and heads are cut among devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxattn.nn import (
    SHARDING_RULES,
    Alibi,
    Attention,
    CrossCorrelation,
    EnergyGated,
    Hierarchical,
    RandomFeatures,
    Softmax,
    sharding,
)
from jaxattn.nn.sharding import gather_parameters, parameter_spec


@pytest.mark.parametrize(
    "names, shape, expected",
    [
        (("embed", "mlp"), (16, 64), P("fsdp", "tensor")),
        (("mlp", "embed"), (64, 16), P(("tensor", "fsdp"), None)),
        (("heads", "head_dim", "embed"), (8, 4, 16), P(("tensor", "fsdp"), None, None)),
        (("heads", "head_dim", "embed"), (6, 4, 16), P("tensor", "fsdp", None)),
        (("heads", "head_dim", "embed"), (3, 3, 16), P(None, None, "fsdp")),
        (("embed",), (16,), P("fsdp")),
        (("layers", "mlp", "embed"), (8, 64, 16), P(None, ("tensor", "fsdp"), None)),
        (("mlp",), (64,), P("tensor")),
    ],
)
def test_parameters_are_cut_along_a_major_dimension(names, shape, expected):
    """Compilers do not scatter gradients along minor ones."""
    mesh = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))
    assert parameter_spec(names, shape, mesh) == expected


def test_gathered_parameters_have_scattered_gradients():
    mesh = AbstractMesh((4, 2), ("fsdp", "tensor"), (AxisType.Auto,) * 2)
    kernel = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh), nnx.logical_axis_rules(SHARDING_RULES):
        gradient = jax.value_and_grad(lambda x: gather_parameters(x, ("mlp", "embed")).sum())
        program = jax.make_jaxpr(gradient)(kernel)
    cut = [e.params["sharding"].spec for e in program.eqns if e.primitive.name == "sharding_constraint"]
    assert cut == [P("tensor", None), P(("tensor", "fsdp"), None)]


@pytest.mark.parametrize(
    "sizes, names, shape",
    [
        ({"fsdp": 8}, ("embed", "mlp"), (16, 12)),
        ({"fsdp": 4, "tensor": 2}, ("mlp", "embed"), (8, 16)),
        (
            {"fsdp": 8},
            ("heads", "head_dim", "embed"),
            (4, 6, 16),
        ),  # neither 4 nor 6 is a multiple of 8, but 24 is
        ({"fsdp": 8}, ("heads", "head_dim", "embed"), (3, 3, 16)),
        ({"fsdp": 8}, ("embed",), (16,)),
    ],
)
@pytest.mark.parametrize("at_once", [2, 8])
def test_gathered_in_one_step_or_two(sizes, names, shape, at_once, monkeypatch):
    """Values and gradients of one device, whatever the order of devices, and the gradient cut like the parameter."""
    monkeypatch.setattr(sharding, "_devices_a_step", lambda _: at_once)
    axis_types = (AxisType.Auto,) * len(sizes)
    devices = np.array(jax.devices()[::-1]).reshape(tuple(sizes.values()))
    mesh = jax.sharding.Mesh(devices, tuple(sizes), axis_types=axis_types)
    x = jax.random.normal(jax.random.key(0), (8, *shape))
    kernel = jax.random.normal(jax.random.key(1), shape)

    def loss(kernel, x):
        return jnp.square((x * gather_parameters(kernel, names)).sum(range(1, x.ndim))).sum()

    expected = jax.value_and_grad(loss)(kernel, x)
    stored = NamedSharding(mesh, parameter_spec(names, shape, mesh))
    with nnx.logical_axis_rules(SHARDING_RULES):
        args = jax.device_put(kernel, stored), jax.device_put(x, NamedSharding(mesh, P("fsdp")))
        step = jax.jit(jax.value_and_grad(loss))
        found = step(*args)
        steps = str(step.trace(*args).jaxpr).count("fsdp inner")
    assert (steps > 0) == (at_once < sizes["fsdp"] and len(shape) > 1)
    assert found[1].sharding.is_equivalent_to(stored, kernel.ndim)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sizes, stored, used",
    [
        ({"fsdp": 16}, "fsdp", ()),
        ({"fsdp": 7}, "fsdp", ()),
        ({"data": 2, "fsdp": 8, "tensor": 3}, ("tensor", "fsdp"), "tensor"),
        ({"data": 2, "fsdp": 8, "sequence": 1}, ("data", "fsdp"), ()),
        ({"data": 8, "fsdp": 9, "tensor": 2}, ("tensor", "fsdp", "data"), "tensor"),
    ],
)
def test_each_step_of_a_gather_keeps_what_devices_have(sizes, stored, used, monkeypatch):
    """Else parameters and gradients are exchanged between devices, and compilers find shardings not of the mesh."""
    monkeypatch.setattr(sharding, "_devices_a_step", lambda _: 2)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))

    def held(step):
        """Where the part of every device begins and ends."""
        sizes, part, count = step.mesh.shape, 0, 1
        places = dict(zip(sizes, np.indices(tuple(sizes.values())), strict=True))
        for axis in sharding._axes(step.spec[0]):
            part, count = part * sizes[axis] + places[axis], count * sizes[axis]
        part = np.broadcast_to(part, tuple(sizes.values())).ravel()
        return part * (mesh.size // count), (part + 1) * (mesh.size // count)

    first, second, third = map(held, sharding._path(mesh, P(stored, None), P(used, None)))
    for (start, stop), (new_start, new_stop) in ((first, second), (second, third)):
        assert (new_start <= start).all() and (stop <= new_stop).all()


def test_many_tpus_gather_and_scatter_in_two_steps():
    """libtpu would sum gradients whole on every chip; a mesh that is no TPU's takes one step."""
    for platform, expected in (("tpu", [("fsdp", 16), ("fsdp inner", 16)]), ("gpu", [("fsdp", 256)])):
        device = AbstractDevice("device", num_cores=None, platform=platform)
        mesh = AbstractMesh((256,), ("fsdp",), (AxisType.Auto,), abstract_device=device)
        kernel = jax.ShapeDtypeStruct((2048, 64), jnp.float32)
        with jax.sharding.use_abstract_mesh(mesh), nnx.logical_axis_rules(SHARDING_RULES):
            gradient = jax.value_and_grad(lambda x: gather_parameters(x, ("embed", "mlp")).sum())
            program = jax.make_jaxpr(gradient)(kernel)
        cut = [e.params["sharding"] for e in program.eqns if e.primitive.name == "sharding_constraint"]
        assert list(cut[0].mesh.shape.items()) == expected
        assert len(cut) == 2 * len(expected)
        assert cut[-1] == NamedSharding(mesh, P("fsdp", None))


@pytest.mark.parametrize("mechanism", [RandomFeatures(num_features=16), Softmax(), Hierarchical((128,))])
@pytest.mark.few(2)
def test_fused_kernels_where_rows_and_heads_are_cut(mechanism):
    """Each on its own part: inside of `jax.shard_map`. Not where devices would share a key head."""
    mesh = AbstractMesh((2, 2), ("data", "tensor"), (AxisType.Auto,) * 2)

    def traced(num_kv_heads, rules=SHARDING_RULES):
        layer = Attention(2, 8, mechanism=mechanism, num_kv_heads=num_kv_heads, rngs=nnx.Rngs(0))
        graph, state = nnx.split(layer)
        x = jax.ShapeDtypeStruct((2, 256, 8), jnp.float32)
        with jax.sharding.use_abstract_mesh(mesh), nnx.logical_axis_rules(rules):
            program = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x, is_causal=True))(state, x)
        return "shard_map" in str(program), "pallas_call" in str(program)

    assert traced(2) == (True, True)
    assert traced(1) == (False, False)
    assert traced(2, [*SHARDING_RULES, ("kv_heads", None)]) == (False, False)


def mesh_of(**sizes):
    devices = jax.devices()[: np.prod(list(sizes.values()))]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)


@pytest.mark.parametrize("sizes", [{"sequence": 2}, {"data": 2, "tensor": 2, "sequence": 2}])
@pytest.mark.parametrize(
    "mechanism",
    [
        EnergyGated(inner=Softmax(sinks=True)),
        CrossCorrelation(2),
        Softmax(),
        Alibi(),
        RandomFeatures(num_features=8),
    ],
)
@pytest.mark.few(1)
def test_caches_cut_by_position(mechanism, sizes):
    """Prompts of different lengths, then a token a call: each device has half of a cache; outputs of one device."""
    layer = Attention(2, 8, mechanism=mechanism, num_kv_heads=2, rotary=10000.0, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8))

    def decode():
        step = jax.jit(lambda state, x, mask: layer.step(state, x, token_mask=mask))
        mask = jnp.arange(5) < jnp.array([[5], [3]])
        outs, state = [], layer.init_state(2, 8)
        for start, stop in ((0, 5), (5, 6), (6, 7)):
            given = mask if start == 0 else jnp.ones((2, 1), bool)
            state, out = step(state, x[:, start:stop], given)
            outs.append(jnp.where(given[..., None], out, 0))
        return jnp.concatenate(outs, axis=1), state

    expected, whole = decode()
    with jax.set_mesh(mesh_of(**sizes)), nnx.logical_axis_rules(SHARDING_RULES):
        found, state = decode()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for (path, a), b in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=str(path))
        if a.ndim == 4 and a.shape[1] == 8:
            cut = [sizes.get(axis, 1) for axis in ("data", "sequence", "tensor", "")]
            assert a.addressable_shards[0].data.shape == tuple(np.array(a.shape) // cut)


def test_a_cache_that_does_not_divide():
    layer = Attention(2, 8, rngs=nnx.Rngs(0))
    message = r"max_length must be a multiple of 2: .*; got 7"
    mesh, rules = jax.set_mesh(mesh_of(sequence=2)), nnx.logical_axis_rules(SHARDING_RULES)
    with mesh, rules, pytest.raises(ValueError, match=message):
        layer.step(layer.init_state(1, 7), jnp.ones((1, 1, 8)))


def test_tokens_cut_over_two_axes():
    layer, rules = Attention(2, 8, rngs=nnx.Rngs(0)), [("sequence", ("data", "tensor"))]
    mesh, message = (
        AbstractMesh((2, 2), ("data", "tensor"), (AxisType.Auto,) * 2),
        r"one axis .* got \('data'",
    )
    within = jax.sharding.use_abstract_mesh(mesh), nnx.logical_axis_rules(rules)
    with within[0], within[1], pytest.raises(ValueError, match=message):
        jax.eval_shape(layer, jnp.ones((1, 4, 8)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_heads_cut_along_their_width_stay_cut(kind):
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(kind,))
    project, x = Attention(2, 16, head_dim=8, rngs=nnx.Rngs(0)).query, jnp.ones((1, 3, 16))
    expected = project(x)
    whole, cut = (NamedSharding(mesh, spec) for spec in (P(), P(None, None, "tensor")))
    project.kernel.set_value(jax.device_put(project.kernel[...], cut))
    project.bias.set_value(jax.device_put(project.bias[...], NamedSharding(mesh, P(None, "tensor"))))
    with jax.set_mesh(mesh), nnx.logical_axis_rules([("head_dim", "tensor")]):
        program = nnx.jit(lambda project, x: project(x)).lower(project, jax.device_put(x, whole)).compile()
        out = nnx.jit(lambda project, x: project(x))(project, jax.device_put(x, whole))
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert "all-gather" not in program.as_text()
