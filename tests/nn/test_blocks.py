"""Blocks and stacks of them: padding, packing, dropout, and modules as pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxattn.nn import Decoder, Encoder


def test_encoder_ignores_padding():
    encoder = Encoder(1, 16, 4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 6, 16))
    padded = jnp.concatenate([x, jnp.full((2, 4, 16), 100.0)], axis=1)
    mask = jnp.broadcast_to(jnp.arange(10) < 6, (2, 10))
    np.testing.assert_allclose(encoder(padded, token_mask=mask)[:, :6], encoder(x), atol=1e-5)


def test_packed_segments_do_not_meet():
    decoder = Decoder(1, 16, 4, rotary=10000.0, rngs=nnx.Rngs(0))
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 5, 16))
    packed = decoder(
        jnp.concatenate([a, b], axis=1),
        segment_ids=jnp.array([[0] * 5 + [1] * 5]),
        positions=jnp.array([[*range(5), *range(5)]]),
    )
    np.testing.assert_allclose(packed, jnp.concatenate([decoder(a), decoder(b)], axis=1), atol=1e-5)


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
