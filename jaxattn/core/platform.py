"""Code for the platform that is lowered for, which nobody knows while it is traced; and a hint to all compilers."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# The platforms that have code of their own somewhere; any other is an accelerator without.
PLATFORMS = ("cpu", "cuda", "tpu")
OTHER = "other"


def by_platform(choose: Callable[[str], Hashable], run: Callable[..., Any], *args: Any) -> Any:
    """`run(choose(platform), *args)` for the platform that the program is lowered for.

    That may be another than the default backend's: under ahead-of-time compilation, `jax.export`,
    `jax.default_device`, or on arrays of another device. Where platforms differ in their choice, the code of each is
    traced, and one is lowered.

    Args:
        choose: of the name of a platform, one of `PLATFORMS` or `OTHER`.
        run: a function of a module, as what it stands for is compiled once a choice and shapes.
        args: pytrees of arrays.
    """
    other = choose(OTHER)
    different = tuple((name, choice) for name in PLATFORMS if (choice := choose(name)) != other)
    return _switch(run, different, other, args) if different else run(other, *args)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _switch(run: Callable[..., Any], different: tuple[tuple[str, Any], ...], other: Any, args: Any) -> Any:
    # Equal choices share one branch. Under jit, since outside of it only the default device would be asked.
    branch = functools.cache(lambda choice: functools.partial(run, choice))
    return lax.platform_dependent(
        *args, default=branch(other), **{name: branch(choice) for name, choice in different}
    )


def computed_once(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x itself, behind a product that compilers do not fuse, as is its gradient.

    Otherwise a bias that is a computation (log sigmoid of an energy) is fused into all that reads it, such as the
    loop over scores, and computed T times over: the CPU compiler does so, and ignores `lax.optimization_barrier`
    while at it. The product is of finite numbers alone, also once a TPU has cut them into bfloat16 parts: −inf less
    its largest part, −inf, is NaN.
    """
    removed = x == -jnp.inf
    finite = jnp.where(removed, 0, jnp.maximum(x, float(jnp.finfo(jnp.bfloat16).min)))
    pair = jnp.stack([finite, removed.astype(x.dtype)], axis=-1)
    pair = jnp.einsum("...p,pr->...r", pair, jnp.eye(2, dtype=x.dtype), precision=lax.Precision.HIGHEST)
    return jnp.where(pair[..., 1] > 0, -jnp.inf, pair[..., 0])
