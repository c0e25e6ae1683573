"""Kernels under meshes with explicit axes, beyond what the common tests try: contexts, transformations, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxattn
from jaxattn.nn import Attention, EnergyGated

X = jax.random.normal(jax.random.key(0), (4, 12, 2, 8))
SPEC = P("data", None, "model", None)
attend = functools.partial(jaxattn.dot_product_attention, is_causal=True)


def mesh():
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)


def sharded(x=X, spec=SPEC):
    return jax.device_put(x, NamedSharding(mesh(), spec))


def itself(x):
    return attend(x, x, x)


def close(got, want):
    np.testing.assert_allclose(jax.device_get(got), want, atol=1e-5)


@pytest.mark.parametrize("prepare", [lambda fn: fn, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"])
@pytest.mark.parametrize("in_context", [True, False], ids=["set_mesh", "mesh of the arrays"])
@pytest.mark.few(3)
def test_contexts(prepare, in_context):
    x = sharded()
    if in_context:
        with jax.set_mesh(mesh()):
            out = prepare(itself)(x)
    else:
        out = prepare(itself)(x)
    assert jax.typeof(out).sharding.spec == SPEC
    close(out, itself(X))


def test_steps_are_the_body_of_a_scan():
    """A state keeps its sharding, here that of the tokens."""

    def decode(state, x):
        def step(state, token):
            return jaxattn.dot_product_attention_step(state, token, token, token)

        return jax.lax.scan(step, state, jnp.moveaxis(x[:, :, None], 1, 0))

    empty = jaxattn.dot_product_attention_init_state(4, 12, 2, 8)
    with jax.set_mesh(mesh()):
        specs = type(empty)(SPEC, SPEC, P("data", None, "model"), P())
        state, outs = jax.jit(decode)(jax.device_put(empty, specs), sharded())
    assert state.key.sharding.spec == SPEC
    close(jnp.moveaxis(jax.device_get(outs)[:, :, 0], 0, 1), itself(X))


def test_axes_that_shard_map_leaves():
    with jax.set_mesh(mesh()):
        mapped = jax.shard_map(itself, in_specs=P("data"), out_specs=P("data"), axis_names={"data"})
        out = jax.jit(mapped)(sharded())
    close(out, itself(X))


@pytest.mark.slow
def test_what_else_is_made_of_queries_and_keys():
    feature_map = jaxattn.FeatureMap.create(jax.random.key(1), 8, 16)
    tree = jaxattn.Tree.uniform(12, 3)

    def run(x):
        return (
            jaxattn.hierarchical_weights(x, x, tree),
            jaxattn.hierarchical_energy(x, x, tree),
            feature_map.calibrate(x, x).moments.query_second,
            *jaxattn.cross_correlation(x, x, jnp.ones(5)),
        )

    with jax.set_mesh(mesh()):
        found = jax.jit(run)(sharded())
    for got, want in zip(found, run(X), strict=True):
        close(got, want)


@pytest.mark.slow
def test_a_layer():
    layer = Attention(4, 16, mechanism=EnergyGated(), num_kv_heads=2, rngs=nnx.Rngs(0))
    x = X.reshape(4, 12, 16)
    gradient = jax.grad(lambda x: jnp.sin(layer(x, is_causal=True)).sum())
    with jax.set_mesh(mesh()):
        got = jax.jit(gradient)(sharded(x, P("data")))
    close(got, gradient(x))


@pytest.mark.usefixtures("no_typecheck")
def test_bad_arguments_are_named_as_elsewhere():
    with jax.set_mesh(mesh()), pytest.raises(ValueError, match=r"query must have shape"):
        itself(sharded(X[0, 0], P("model")))
