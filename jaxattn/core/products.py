"""A product that keeps compilers from computing its operand anew for everything that reads it."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def computed_once(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x itself, behind a product that compilers do not fuse, as is its gradient.

    Otherwise a bias that is a computation (log sigmoid of an energy) is fused into all that reads it, such as the
    loop over scores, and computed T times over: the CPU compiler does so, and ignores `lax.optimization_barrier`
    while at it.
    """
    pair = jnp.stack([x, jnp.zeros_like(x)], axis=-1)
    return jnp.einsum("...p,pr->...r", pair, jnp.ones((2, 2), x.dtype), precision=lax.Precision.HIGHEST)[
        ..., 0
    ]
