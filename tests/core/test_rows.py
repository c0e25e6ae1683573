"""Fused kernels where the batch is cut among devices: each computes its own rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxattn
from jaxattn.core.call import check_call
from jaxattn.core.pallas.rows import batch_over, on_rows, own_rows
from jaxattn.softmax.attention import choose_implementation
from jaxattn.softmax.options import with_options

FEATURES = jaxattn.FeatureMap.create(jax.random.key(0), 8, 16)
TREE = jaxattn.Tree.uniform(16, 8)


def features(x, key_bias, feature_map):
    return jaxattn.random_feature_attention(
        x, x, x, feature_map, key_bias=key_bias, is_causal=True, implementation="pallas"
    )


def tree(x, key_bias, _):
    return jaxattn.hierarchical_attention(
        x, x, x, TREE, key_bias=key_bias, is_causal=True, implementation="pallas"
    )


@pytest.mark.parametrize("attend", [features, tree])
def test_every_device_attends_for_its_own_rows(attend, monkeypatch):
    """Values and gradients are those of one device, also of parameters that rows share; nothing is gathered."""
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
    x = jax.random.normal(jax.random.key(1), (4, 16, 2, 8)) / 2
    key_bias = jax.random.normal(jax.random.key(2), (4, 16, 2))

    def loss(x, key_bias, feature_map):
        return (attend(x, key_bias, feature_map) ** 2).sum()

    def derivatives(*args):
        with batch_over(("data", "fsdp")):
            return jax.value_and_grad(loss, (0, 1, 2), allow_int=True)(*args)

    def values(tree):
        return [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.float32]

    rows, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
    given = (*jax.device_put((x, key_bias), rows), jax.device_put(FEATURES, whole))
    compiled = jax.jit(derivatives).lower(*given).compile()
    one = values(jax.jit(derivatives)(x, key_bias, FEATURES))
    for a, b in zip(values(compiled(*given)), one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize("attend", [features, tree])
def test_rows_of_concrete_arrays(attend, monkeypatch):
    """Outside of jit too; of a key bias that rows share as well."""
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    x = jax.random.normal(jax.random.key(1), (2, 16, 1, 8)) / 2
    key_bias = jax.random.normal(jax.random.key(2), (1, 16, 1))
    given = jax.device_put((x, key_bias, FEATURES), NamedSharding(mesh, P()))
    with batch_over(("data",)):
        found = attend(*given)
    np.testing.assert_allclose(found, attend(x, key_bias, FEATURES), rtol=1e-5, atol=1e-5)


def test_sinks_are_of_heads_and_not_of_rows():
    """Also where there are as many."""
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    x = jax.device_put(jax.random.normal(jax.random.key(1), (2, 3, 2, 4)), NamedSharding(mesh, P("data")))
    call = with_options(check_call(x, x, x), sinks=jnp.array([1.0, 2.0]))
    with batch_over(("data",)):
        rows = own_rows(call)
    assert rows is not None
    found = on_rows(rows, lambda call: call.query * call.sinks[..., None], call)
    np.testing.assert_allclose(found[..., 0, :], x * jnp.array([1.0, 2.0])[:, None])


def test_fused_kernels_are_chosen_where_nothing_but_rows_is_cut():
    def chosen(sizes, axes, batch=4, kind=AxisType.Auto):
        names = ("data", "fsdp", "tensor")
        mesh = jax.sharding.AbstractMesh(sizes, names, (kind,) * 3)
        x = jax.ShapeDtypeStruct((batch, 128, 2, 128), jnp.bfloat16)
        with jax.sharding.use_abstract_mesh(mesh), batch_over(axes):
            return jax.eval_shape(lambda x: _choice(x), x).shape == (1,)

    def _choice(x):
        call = check_call(x, x, x)
        splash = choose_implementation(call, "tpu") == "splash"
        assert splash == (own_rows(call) is not None)
        return jnp.zeros(1 if splash else 2)

    assert chosen((2, 2, 1), ("data", "fsdp"))
    assert not chosen((2, 2, 1), ())
    assert not chosen((2, 1, 2), ("data", "fsdp")), "heads are cut too"
    assert not chosen((2, 4, 1), ("data", "fsdp")), "4 rows on 8 devices"
    assert not chosen((2, 2, 1), ("data", "fsdp"), kind=AxisType.Explicit), "types say how arrays are cut"
