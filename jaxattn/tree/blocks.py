"""Uniform trees as a crown over subtrees of equal size, which are worked on a block of tokens at a time."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.tree.pooling import Leaves
from jaxattn.tree.tree import Tree

# Tokens worked on at a time: their scores stay in the VMEM of a TPU.
BLOCK = 1024


class Cut(NamedTuple):
    """A uniform tree in two parts: the subtree below each leaf of the crown; the last may have padding.

    together: how many subtrees are worked on at a time.
    """

    length: int
    together: int
    crown: Tree
    subtree: Tree

    def roots(self, function: Callable[[Leaves], Any], leaves: Leaves) -> Any:
        """`function` of the leaves of every subtree: arrays (K, …) become (K, subtrees, …)."""
        found = self._map(lambda leaves, _: function(leaves), leaves, ())
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)

    def outputs(self, function: Callable[[Leaves, Any], Array], leaves: Leaves, above: Any) -> Array:
        """`function` of the leaves of every subtree and its part of `above`, arrays (K, subtrees, …).

        It gives outputs (K, tokens, G, V); they become (K, T, G, V).
        """
        heads, groups, dtype = leaves.query.shape[0], leaves.query.shape[2], leaves.value.dtype
        out = self._map(lambda *args: _flat(function(*args).astype(dtype)), leaves, above)
        out = jnp.moveaxis(out.reshape(-1, heads, groups, leaves.value.shape[-1]), 1, 0)
        return out[:, : self.length]

    def _map(self, function: Callable[..., Any], leaves: Leaves, above: Any) -> Any:
        """Results (subtrees, …), recomputed in the backward pass: no score outlives its block."""
        count, width, together = self.crown.length, self.subtree.length, self.together
        steps = -(-count // together)

        def stack(x: Array, size: int, fill: float = 0.0) -> Array:
            """(K, subtrees size, …) -> (steps, together, size, K …)."""
            missing = steps * together * size - x.shape[1]
            x = jnp.pad(_flat(x), [(0, missing), (0, 0)], constant_values=fill)
            return x.reshape(steps, together, size, -1)

        def split(x: Array, like: Array) -> Array:
            """(size, K …) -> (K, size, …)."""
            return jnp.moveaxis(x.reshape(-1, like.shape[0], *like.shape[2:]), 1, 0)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def step(xs: Any) -> Any:
            return jax.vmap(one)(*xs)

        def one(tokens: Any, roots: Any) -> Any:
            roots = jax.tree.map(lambda x, like: split(x, like)[:, 0], roots, above)
            return function(Leaves(*map(split, tokens, leaves)).widened(), roots)

        fills = 0.0, 0.0, 0.0, -jnp.inf
        tokens = Leaves(*(stack(x, width, fill) for x, fill in zip(leaves, fills, strict=True)))
        found = lax.map(step, (tokens, jax.tree.map(lambda x: stack(x, 1), above)))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)


def _flat(x: Array) -> Array:
    """(K, tokens, …) -> (tokens, K …), as blocks are kept: a last axis of 64 would take 128 on a TPU."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)


def cut(tree: Tree, block: int | None) -> Cut | None:
    """The cut of a uniform tree with the largest subtrees up to `block` tokens; None if it is left whole."""
    if block is None or not tree.is_uniform:
        return None
    width, height = 1, 0
    while height < tree.height and width * tree.branching[height] <= block:
        width *= tree.branching[height]
        height += 1
    if height in (0, tree.height):
        return None
    crown, subtree = tree.branching[height:], tree.branching[:height]
    count = -(-tree.length // width)
    together = min(count, block // width)
    return Cut(tree.length, together, Tree(count, crown, True, True), Tree(width, subtree, True, True))
