"""Fused kernels where the batch and heads are cut among devices: each attends for its own part."""

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
from jaxattn.core.pallas.parts import cut_over, on_parts, own_part
from jaxattn.softmax import attention as softmax_attention
from jaxattn.softmax.attention import choose_implementation
from jaxattn.softmax.options import with_options

# Maps of their own for both key heads, and one for all.
FEATURES = jaxattn.FeatureMap.create(jax.random.key(0), 8, 16, num_heads=2)
SHARED_FEATURES = jaxattn.FeatureMap.create(jax.random.key(0), 8, 16)
TREE = jaxattn.Tree.uniform(16, 8)


def features(x, key, key_bias, feature_map, sinks):
    return jaxattn.random_feature_attention(
        x, key, key, feature_map, key_bias=key_bias, is_causal=True, implementation="pallas"
    )


def segments(x, key, key_bias, feature_map, sinks):
    ids = jnp.arange(16) // jnp.arange(3, 3 + x.shape[0])[:, None]
    return jaxattn.random_feature_attention(
        x, key, key, feature_map, key_bias=key_bias, segment_ids=ids, implementation="pallas"
    )


def tree(x, key, key_bias, feature_map, sinks):
    return jaxattn.hierarchical_attention(
        x, key, key, TREE, key_bias=key_bias, is_causal=True, implementation="pallas"
    )


def softmax(x, key, key_bias, feature_map, sinks):
    return jaxattn.dot_product_attention(
        x, key, key, key_bias=key_bias, sinks=sinks, is_causal=True, implementation="splash"
    )


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    splash = functools.partial(softmax_attention.splash_attention, interpret=True)
    monkeypatch.setattr(softmax_attention, "splash_attention", splash)


def arguments(feature_map, batch=4, heads=4, key_heads=2):
    """Query, key, a bias a query head, a feature map, sinks."""
    keys = jax.random.split(jax.random.key(1), 4)
    return (
        jax.random.normal(keys[0], (batch, 16, heads, 8)) / 2,
        jax.random.normal(keys[1], (batch, 16, key_heads, 8)) / 2,
        jax.random.normal(keys[2], (batch, 16, heads)),
        feature_map,
        jax.random.normal(keys[3], (heads,)),
    )


@pytest.mark.parametrize(
    "attend, feature_map, sizes",
    [
        (features, FEATURES, {"data": 2, "fsdp": 1, "tensor": 2}),
        (features, SHARED_FEATURES, {"data": 2, "fsdp": 2, "tensor": 1}),
        (features, SHARED_FEATURES, {"data": 1, "fsdp": 1, "tensor": 2}),
        (segments, FEATURES, {"data": 2, "fsdp": 1, "tensor": 2}),
        (softmax, FEATURES, {"data": 2, "fsdp": 1, "tensor": 2}),
        (softmax, FEATURES, {"data": 2, "fsdp": 2, "tensor": 2}),
        (tree, FEATURES, {"data": 2, "fsdp": 2, "tensor": 1}),
        (tree, FEATURES, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
@pytest.mark.few(3)
def test_every_device_attends_for_its_own_part(attend, feature_map, sizes):
    """Values and gradients are those of one device, also of what rows or heads share; nothing is gathered."""
    shape = tuple(sizes.values())
    devices = jax.devices()[: np.prod(shape)]
    mesh = jax.make_mesh(shape, tuple(sizes), (AxisType.Auto,) * 3, devices=devices)
    given = arguments(feature_map)

    def loss(*args):
        return (attend(*args) ** 2).sum()

    def derivatives(*args):
        with cut_over(("data", "fsdp"), ("tensor",)):
            return jax.value_and_grad(loss, (0, 1, 2, 3, 4), allow_int=True)(*args)

    def values(tree):
        return [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.float32]

    cut = P(("data", "fsdp"), None, "tensor")
    specs = (cut, cut, cut, jax.tree.map(lambda _: P(), feature_map), P("tensor"))
    placed = jax.device_put(given, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    compiled = jax.jit(derivatives).lower(*placed).compile()
    one = values(jax.jit(derivatives)(*given))
    for a, b in zip(values(compiled(*placed)), one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize("attend", [tree, features])
@pytest.mark.parametrize("axes", [{"batch": ("data",)}, {"heads": ("data",)}])
@pytest.mark.few(2)
def test_parts_of_concrete_arrays(attend, axes):
    """Outside of jit too; of a key bias that rows and heads share as well."""
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    x, key, _, feature_map, sinks = arguments(FEATURES, 2, 2)
    key_bias = jax.random.normal(jax.random.key(2), (1, 16, 1))
    given = x, key, key_bias, feature_map, sinks
    with cut_over(**axes):
        found = attend(*jax.device_put(given, NamedSharding(mesh, P())))
    np.testing.assert_allclose(found, attend(*given), rtol=1e-5, atol=1e-5)


def test_sinks_are_of_heads_and_not_of_rows():
    """Also where there are as many."""
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    x = jax.device_put(jax.random.normal(jax.random.key(1), (2, 3, 2, 4)), NamedSharding(mesh, P("data")))
    call = with_options(check_call(x, x, x), sinks=jnp.array([1.0, 2.0]))
    with cut_over(("data",)):
        parts = own_part(call)
    assert parts is not None
    found = on_parts(parts, lambda call: call.query * call.sinks[..., None], call)
    np.testing.assert_allclose(found[..., 0, :], x * jnp.array([1.0, 2.0])[:, None])


def test_fused_kernels_are_chosen_where_nothing_but_rows_and_heads_is_cut():
    def chosen(sizes, batch_axes, head_axes=(), batch=4, key_heads=2, kind=AxisType.Auto):
        names = ("data", "fsdp", "tensor")
        mesh = jax.sharding.AbstractMesh(sizes, names, (kind,) * 3)
        query, key = (jax.ShapeDtypeStruct((batch, 128, n, 128), jnp.bfloat16) for n in (4, key_heads))
        with jax.sharding.use_abstract_mesh(mesh), cut_over(batch_axes, head_axes):
            return jax.eval_shape(lambda *x: _choice(*x), query, key).shape == (1,)

    def _choice(query, key):
        call = check_call(query, key, key)
        splash = choose_implementation(call, "tpu") == "splash"
        assert splash == (own_part(call) is not None)
        return jnp.zeros(1 if splash else 2)

    rows, heads = ("data", "fsdp"), ("tensor",)
    assert chosen((2, 2, 1), rows)
    assert chosen((2, 2, 1), rows, heads)
    assert chosen((2, 1, 2), rows, heads)
    assert chosen((1, 1, 2), (), heads)
    assert not chosen((2, 2, 1), ())
    assert not chosen((2, 1, 2), rows), "what is not said may be cut"
    assert not chosen((2, 1, 2), rows, heads, key_heads=1), "one key head on 2 devices"
    assert not chosen((2, 4, 1), rows, heads), "4 rows on 8 devices"
    assert not chosen((2, 2, 1), rows, kind=AxisType.Explicit), "types say how arrays are cut"
