"""Random arguments of hierarchical attention."""

import jax
import jax.numpy as jnp
import numpy as np

LENGTH, HEADS, WIDTH = 12, 2, 4


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tree_arrays(batch, length=LENGTH, heads=HEADS, kv_heads=HEADS):
    """query, key, value and a key bias for each head."""
    keys = (batch, length, kv_heads, WIDTH)
    return (
        normal(0, batch, length, heads, WIDTH),
        normal(1, *keys),
        normal(2, *keys),
        normal(3, batch, length, heads),
    )


def sibling_biases(tree, heads=HEADS):
    return tuple(normal(10 + level, heads, size, size) for level, size in enumerate(tree.branching))


def jitted(function, tree, **options):
    """The kernel as a compiled function of (query, key, value, key_bias)."""
    return jax.jit(
        lambda query, key, value, key_bias: function(query, key, value, tree, key_bias=key_bias, **options)
    )
