"""Blocks and stacks of them: padding, packing, dropout, and modules as pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import Attention, Decoder, Encoder
from jaxattn.positions import Rotary


def test_encoder_ignores_padding():
    encoder = nnx.jit(Encoder(1, 16, 4, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 6, 16))
    padded = jnp.concatenate([x, jnp.full((2, 4, 16), 100.0)], axis=1)
    mask = jnp.broadcast_to(jnp.arange(10) < 6, (2, 10))
    np.testing.assert_allclose(encoder(padded, token_mask=mask)[:, :6], encoder(x), atol=1e-5)


def test_packed_segments_do_not_meet():
    decoder = nnx.jit(Decoder(1, 16, 4, rotary=10000.0, rngs=nnx.Rngs(0)))
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 5, 16))
    packed = decoder(
        jnp.concatenate([a, b], axis=1),
        segment_ids=jnp.array([[0] * 5 + [1] * 5]),
        positions=jnp.array([[*range(5), *range(5)]]),
    )
    np.testing.assert_allclose(packed, jnp.concatenate([decoder(a), decoder(b)], axis=1), atol=1e-5)


def test_positions_are_refused_where_nothing_rotates():
    x, positions = jnp.ones((1, 4, 8)), jnp.arange(4)
    attention, rotating = (Attention(2, 8, rotary=r, rngs=nnx.Rngs(0)) for r in (None, 10.0))
    message = "positions is for .* a rotary position embedding"
    for layer in (
        attention,
        *(Encoder(n, 8, 2, rngs=nnx.Rngs(0)) for n in (1, 4)),
        Encoder(1, 8, 2, rngs=nnx.Rngs(0)).blocks[0],
    ):
        with pytest.raises(ValueError, match=message):
            layer(x, positions=positions)
    with pytest.raises(ValueError, match=f"context_{message}"):
        attention(x, context=x, context_positions=positions)
    rotating(x, context=x, positions=positions, context_positions=positions)
    encoder = Encoder(2, 8, 2, rngs=nnx.Rngs(0))
    encoder.blocks[1].attention.rotary = Rotary()  # one of two
    encoder(x, positions=positions)


def test_bad_sizes(no_typecheck):
    for options, message in (
        ({"num_layers": 0}, "num_layers must be at least 1; got 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must give the MLP a width of at least 1; got 0.0"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\); got 1.5"),
        ({"scan_layers": "no"}, "scan_layers must be one of None, True, False; got 'no'"),
    ):
        with pytest.raises(ValueError, match=message):
            Encoder(**{"num_layers": 1, "features": 8, "num_heads": 2, **options}, rngs=nnx.Rngs(0))


def test_dropout_needs_a_stream_and_changes_the_output():
    encoder = Encoder(1, 16, 4, dropout=0.5, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 4, 16))
    first = encoder(x, deterministic=False, rngs=nnx.Rngs(dropout=0))
    again = encoder(x, deterministic=False, rngs=nnx.Rngs(dropout=0))
    other = encoder(x, deterministic=False, rngs=nnx.Rngs(dropout=1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_modules_are_plain_trees():
    """Split, mapped over as a pytree and merged again, the module is the same; nothing is shared."""
    decoder = Decoder(2, 16, 4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(decoder)
    doubled = nnx.merge(graph, jax.tree.map(lambda leaf: 2 * leaf, state))
    np.testing.assert_allclose(doubled.blocks[1].mlp.up.kernel, 2 * decoder.blocks[1].mlp.up.kernel)
    leaves = jax.tree.leaves(state)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)
