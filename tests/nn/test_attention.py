import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import Attention, CrossCorrelation, EnergyGated, Softmax, logical_axes

MECHANISMS = [
    Softmax(sinks=True),
    Softmax(implementation="blockwise"),
    EnergyGated(),
    EnergyGated(normalization="prefix"),
    EnergyGated(normalization=None),
    CrossCorrelation(lags=3),
    EnergyGated(inner=CrossCorrelation(lags=2)),
]


def make(mechanism, **kwargs):
    return Attention(4, 16, mechanism=mechanism, rngs=nnx.Rngs(0), **kwargs)


def inputs(batch=2, length=12, features=16, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, length, features))


def test_softmax_equals_flax():
    """The same parameters in flax.nnx.MultiHeadAttention give the same output."""
    ours = make(Softmax())
    theirs = nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(1))
    for name in ("query", "key", "value", "out"):
        nnx.update(getattr(theirs, name), nnx.state(getattr(ours, name)))
    x = inputs()
    np.testing.assert_allclose(ours(x, is_causal=True), theirs(x, is_causal=True), atol=1e-5)


def test_projections_are_products_of_matrices():
    """Heads of 64 numbers fill half of a TPU's registers, a matrix of all heads fills them."""
    attention = Attention(4, 24, head_dim=5, use_bias=False, rngs=nnx.Rngs(0))
    text = nnx.jit(lambda module, x: module(x)).lower(attention, inputs(features=24)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert sum("tensor<24x20xf32>" in line for line in products) == 3
    assert sum("tensor<20x24xf32>" in line for line in products) == 1


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
@pytest.mark.few(3)
def test_steps_equal_the_whole(mechanism):
    attention, x = make(mechanism, num_kv_heads=2, rotary=10000.0), inputs(length=8)
    whole = nnx.jit(lambda module, x: module(x, is_causal=True))(attention, x)
    step = nnx.jit(lambda module, state, x: module.step(state, x))
    state, outs = attention.init_state(2, 8), []
    for start, stop in [(0, 5), (5, 6), (6, 7), (7, 8)]:  # a prompt at once, then single tokens
        state, out = step(attention, state, x[:, start:stop])
        outs.append(out)
    np.testing.assert_allclose(jnp.concatenate(outs, axis=1), whole, atol=2e-5)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
@pytest.mark.few(3)
def test_every_parameter_gets_a_gradient(mechanism):
    attention, x = make(mechanism), inputs()
    grads = nnx.jit(nnx.grad(lambda m: (m(x, is_causal=True) ** 2).sum()))(attention)
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert jnp.isfinite(leaf).all(), path
        # a shift of all keys by one vector cancels in the softmax, so the key offset alone has none
        if "key" in str(path) and "bias" in str(path):
            continue
        assert jnp.abs(leaf).max() > 1e-7, path


def test_axes_name_every_dimension():
    attention = make(EnergyGated())
    axes = logical_axes(attention)
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(attention)))
    assert axes["mechanism"]["kernel"] == ("embed", "heads")
    flat_axes = jax.tree.leaves(axes, is_leaf=lambda a: isinstance(a, tuple))
    flat_shapes = jax.tree.leaves(shapes, is_leaf=lambda a: isinstance(a, tuple))
    assert sorted(map(len, flat_axes)) == sorted(map(len, flat_shapes))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 3}, "in_features must be a multiple of num_heads = 3"),
        ({"num_heads": 0}, "num_heads must be at least 1; got 0"),
        ({"num_heads": 4, "out_features": 0}, "out_features must be at least 1; got 0"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads must divide num_heads = 4; got 3"),
    ],
)
def test_bad_sizes(no_typecheck, kwargs, message):
    with pytest.raises(ValueError, match=message):
        Attention(in_features=16, rngs=nnx.Rngs(0), **kwargs)


def test_sequence_statistics_need_allow_leak_when_causal():
    with pytest.raises(ValueError, match="allow_leak"):
        make(EnergyGated(normalization="sequence"))(inputs(), is_causal=True)
    make(EnergyGated(normalization="sequence", allow_leak=True))(inputs(), is_causal=True)
    make(EnergyGated(normalization="sequence"))(inputs())


def test_bf16_computation_keeps_float32_parameters():
    attention = make(EnergyGated(), dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(attention)))
    x = inputs()
    run = nnx.jit(lambda module, x: module(x, is_causal=True))
    low = run(attention, x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), run(make(EnergyGated()), x), atol=0.05)
