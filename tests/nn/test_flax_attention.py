"""Mechanisms in Flax's own attention layers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn
from jaxattn.nn import (
    Attention,
    CrossCorrelation,
    EnergyGated,
    RandomFeatures,
    Softmax,
)


def flax_layer(mechanism, heads=2, head_dim=8, **options):
    rngs = nnx.Rngs(0)
    fn = mechanism.attention_fn(heads, head_dim, rngs=rngs)
    return nnx.MultiHeadAttention(2, 16, attention_fn=fn, rngs=rngs, **options)


@pytest.mark.parametrize(
    "mechanism", [Softmax(), EnergyGated(), EnergyGated(normalization=None), CrossCorrelation(2)], ids=repr
)
@pytest.mark.few(2)
def test_inside_flax_multi_head_attention(mechanism):
    """Under Flax's own module: gradients reach the mechanism, and padding given by a mask changes nothing."""
    rngs = nnx.Rngs(0)
    fn = mechanism.attention_fn(2, 4, rngs=rngs)
    mha = nnx.MultiHeadAttention(2, 8, attention_fn=fn, decode=False, rngs=rngs)
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))
    padded = jnp.concatenate([x, jnp.full((2, 3, 8), 7.0)], axis=1)
    mask = (jnp.arange(9) < 6)[None, None, None, :]
    run = nnx.jit(lambda mha, x, mask=None: mha(x, mask=mask))
    np.testing.assert_allclose(run(mha, padded, mask)[:, :6], run(mha, x), atol=1e-5)
    grads = nnx.jit(nnx.grad(lambda m: (m(x, is_causal=True) ** 2).sum()))(mha)
    chex.assert_tree_all_finite(grads)
    own = jax.tree.leaves(grads["attention_fn"]) if "attention_fn" in grads else []
    assert len(own) == len(jax.tree.leaves(nnx.state(fn, nnx.Param)))


def test_attention_fn_refuses_what_it_cannot_do():
    fn = Softmax().attention_fn(2, 4, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 3, 2, 4))
    for message, options in {
        "dropout_rate must be 0": {"dropout_rate": 0.1, "deterministic": False},
        "sow_weights must not be set": {"module": fn},
        "precision must not be set": {"precision": jax.lax.Precision.HIGHEST},
    }.items():
        with pytest.raises(ValueError, match=message):
            fn(x, x, x, **options)
    bias = jax.random.normal(jax.random.key(0), (1, 2, 3, 3))
    np.testing.assert_allclose(fn(x, x, x, bias=bias), jaxattn.dot_product_attention(x, x, x, bias=bias))
    with pytest.raises(ValueError, match="bias is for mechanisms that form the scores of single pairs"):
        RandomFeatures().attention_fn(2, 4, rngs=nnx.Rngs(0))(x, x, x, bias=bias)
    for unknown in ("segment_ids", "is_casual"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{unknown}'"):
            fn(x, x, x, **{unknown: None})


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 8), (2, 4), (1, 16)])
@pytest.mark.few(1)
def test_attention_fn_of_other_heads_is_named(heads, head_dim):
    x = jax.random.normal(jax.random.key(0), (1, 5, 16))
    for mechanism in (Softmax(), EnergyGated(), CrossCorrelation(2), RandomFeatures(num_features=8)):
        with pytest.raises(
            ValueError, match=rf"query must have the heads .*\({heads}, {head_dim}\); got \(2, 8\)"
        ):
            flax_layer(mechanism, heads, head_dim, decode=False)(x)


@pytest.mark.parametrize(
    "mechanism", [Softmax(), EnergyGated(), CrossCorrelation(2), RandomFeatures(num_features=8)]
)
@pytest.mark.parametrize("queries", [7, 4])
@pytest.mark.few(3)
def test_flax_cross_attention_with_padded_keys(mechanism, queries):
    """A mask of keys is not one of queries, also where there are as many of them."""
    x, context = jax.random.normal(jax.random.key(0), (2, 1, 7, 16))
    layer = flax_layer(mechanism, decode=False)
    keep = (jnp.arange(7) < 4)[None, None, None]
    masked = layer(x[:, :queries], context, mask=keep)
    np.testing.assert_allclose(masked, layer(x[:, :queries], context[:, :4]), atol=2e-6)
    if isinstance(mechanism, RandomFeatures):  # takes masks of keys only
        return
    pairs = nnx.make_attention_mask(jnp.arange(queries) < 3, jnp.arange(7) < 4)[None]
    np.testing.assert_allclose(
        layer(x[:, :queries], context, mask=pairs)[:, :3], layer(x[:, :3], context[:, :4]), atol=2e-6
    )


def test_statistics_in_cross_attention_count_all_queries():
    """Padding of the context says nothing of the queries, also where there are as many of them."""
    x, context = jax.random.normal(jax.random.key(0), (2, 1, 7, 16))

    def statistics(context, mask):
        layer = flax_layer(RandomFeatures(num_features=8), decode=False)
        layer.set_attributes(calibrating=True)
        layer(x, context, mask=mask)
        return layer.attention_fn.mechanism.feature_map.moments

    found = statistics(context, (jnp.arange(7) < 4)[None, None, None])
    expected = statistics(context[:, :4], None)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_flax_self_attention_over_left_padding():
    """make_attention_mask says which queries are padding, so that no later query reads them."""
    layer = flax_layer(CrossCorrelation(2), decode=False)
    x = jax.random.normal(jax.random.key(0), (1, 7, 16))
    keep = jnp.arange(7) >= 3
    mask = nnx.make_attention_mask(keep, keep)[None]
    np.testing.assert_allclose(layer(x, mask=mask)[:, 3:], layer(x[:, 3:]), atol=2e-6)


@pytest.mark.parametrize("mechanism", [Softmax(), EnergyGated(), RandomFeatures(num_features=8)])
def test_flax_decodes(mechanism):
    """With decode=True and Flax's cache, token by token, as the causal whole.

    is_causal there reaches attention_fn in older releases of Flax (issue 5591), and is refused; newer ones drop it.
    """
    layer = flax_layer(mechanism, decode=False)
    x = jax.random.normal(jax.random.key(0), (1, 6, 16))
    whole = layer(x, is_causal=True)
    layer.init_cache(x.shape)
    steps = [layer(x[:, i : i + 1], decode=True) for i in range(6)]
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), whole, atol=2e-5)
    layer.init_cache(x.shape)
    try:
        steps = [layer(x[:, i : i + 1], decode=True, is_causal=True) for i in range(6)]
    except ValueError as error:
        assert "is_causal needs queries and keys of the same tokens; got T = 1 and S = 6" in str(error)
    else:
        np.testing.assert_allclose(jnp.concatenate(steps, axis=1), whole, atol=2e-5)


def test_flax_cannot_decode_what_reads_earlier_queries():
    layer = flax_layer(EnergyGated(CrossCorrelation(2)), decode=False)
    layer.init_cache((1, 6, 16))
    with pytest.raises(ValueError, match="query must come with the queries before it"):
        layer(jnp.ones((1, 1, 16)), decode=True)


def test_a_window_in_a_flax_layer_that_decodes_is_refused():
    fn = Softmax(local_window_size=4).attention_fn(2, 4, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 6, 2, 4))
    with pytest.raises(
        ValueError, match="local_window_size needs queries and keys of the same tokens; got T = 1"
    ):
        fn(x[:, :1], x, x)


def test_a_causal_mask_by_any_name_needs_allow_leak():
    """Statistics of the sequence leak under a causal mask, whether it comes as is_causal or as Flax's mask."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 16))
    causal = nnx.make_causal_mask(x[..., 0], dtype=bool)
    padded = causal & (jnp.arange(6) < 5)
    ours = Attention(2, 16, mechanism=EnergyGated(normalization="sequence"), rngs=nnx.Rngs(0))
    flax = flax_layer(EnergyGated(normalization="sequence"), decode=False)
    features = Attention(2, 16, mechanism=EnergyGated(CrossCorrelation(2), "sequence"), rngs=nnx.Rngs(0))
    q = jnp.ones((2, 6, 2, 8))
    energy = jnp.ones((2, 6, 2))
    for mask in (causal, padded):
        for call in (
            lambda mask: ours(x, mask=mask),
            lambda mask: features(x, mask=mask),
            lambda mask: flax(x, mask=mask),
            lambda mask: jaxattn.energy_gated_attention(
                q, q, q, energy, alpha=1.0, tau=0.0, normalization="sequence", mask=mask
            ),
        ):
            with pytest.raises(ValueError, match="'sequence' under a causal mask"):
                call(mask)
    near = jnp.abs(jnp.arange(6)[:, None] - jnp.arange(6)) <= 2  # a window sees later tokens on purpose
    for mask in (near[None, None], jnp.ones((1, 1, 6, 6), bool), jnp.ones((2, 1, 1, 6), bool)):
        assert jnp.isfinite(ours(x, mask=mask)).all()
    allowed = EnergyGated(normalization="sequence", allow_leak=True)
    assert jnp.isfinite(flax_layer(allowed, decode=False)(x, mask=causal)).all()
