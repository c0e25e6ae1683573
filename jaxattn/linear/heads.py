"""Functions of one head of one sequence, over all heads and sequences: in a loop or vmapped; tokens in blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.mesh import is_partitioned
from jaxattn.linear.plan import Parameters, Plan


def over_heads(
    plan: Plan, function: Callable[..., Any], parameters: Parameters, shared: Any, heads: Any, tokens: Any
):
    """`function(parameters, shared, heads, tokens) -> (heads, tokens)` of one head, over all heads.

    Heads are axis 0 of `heads` and of the parameters that have them, and axis 1 of `tokens`.
    """
    split = [x if by_head else None for x, by_head in zip(parameters, plan.features.by_head, strict=True)]
    common = [None if by_head else x for x, by_head in zip(parameters, plan.features.by_head, strict=True)]

    def one(split: Any, heads: Any, tokens: Any) -> Any:
        return function(
            [a if b is None else b for a, b in zip(common, split, strict=True)], shared, heads, tokens
        )

    if not plan.on_cpu or is_partitioned(tokens):
        return jax.vmap(one, (0, 0, 1), (0, 1))(split, heads, tokens)

    # A loop rather than copies of the program, of which there would be one a head to compile.
    def nth(n: Array) -> Any:
        first, second = (partial(lax.dynamic_index_in_dim, index=n, axis=i, keepdims=False) for i in (0, 1))
        return one(jax.tree.map(first, split), jax.tree.map(first, heads), jax.tree.map(second, tokens))

    heads, tokens = lax.map(nth, jnp.arange(jax.tree.leaves(tokens)[0].shape[1]))
    return heads, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), tokens)


def over_batch(plan: Plan, function: Callable[[Any], Any], tree: Any) -> Any:
    """`function` of one sequence, over the leading axis of all arrays."""
    if not plan.on_cpu or is_partitioned(tree):
        return jax.vmap(function)(tree)
    if jax.tree.leaves(tree)[0].shape[0] == 1:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], tree)))
    return lax.map(function, tree)


def in_blocks(tree: Any, block: int) -> Any:
    """(T, ...) -> (T / block, block, ...)."""
    return jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), tree)


def joined(tree: Any) -> Any:
    """(T / block, block, ...) -> (T, ...)."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
