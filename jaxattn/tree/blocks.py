"""Uniform trees as a crown over subtrees of equal size, which are worked on a block of tokens at a time."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.sequence import gather
from jaxattn.tree.pooling import Leaves
from jaxattn.tree.tree import Tree

# Tokens worked on at a time: their scores stay in the VMEM of a TPU.
BLOCK = 1024


class Blocks(NamedTuple):
    """How a call is cut: tokens worked on at a time, None for all, and the axis over which devices share them."""

    tokens: int | None
    axis_name: str | None = None


class Cut(NamedTuple):
    """A uniform tree in two parts: the subtree below each leaf of the crown; the last may have padding.

    length: this device's tokens. together: how many subtrees are worked on at a time. Every device has the crown.
    """

    length: int
    together: int
    crown: Tree
    subtree: Tree
    axis_name: str | None

    @property
    def subtrees(self) -> int:
        """How many subtrees this device has."""
        return -(-self.length // self.subtree.length)

    def roots(self, function: Callable[[Leaves], Any], leaves: Leaves) -> Any:
        """`function` of the leaves of every subtree of all devices: arrays (K, …) become (K, subtrees, …)."""
        found = self._map(lambda leaves, _: function(leaves), leaves, ())
        return jax.tree.map(lambda x: gather(jnp.moveaxis(x, 0, 1), self.axis_name, 1), found)

    def outputs(self, function: Callable[[Leaves, Any], Array], leaves: Leaves, above: Any) -> Array:
        """`function` of the leaves of every subtree and its part of `above`, arrays (K, subtrees, …).

        It gives outputs (K, tokens, G, V); they become (K, T, G, V).
        """
        if self.axis_name is not None:
            start = lax.axis_index(self.axis_name) * self.subtrees
            above = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, self.subtrees, axis=1), above)
        heads, groups, dtype = leaves.query.shape[0], leaves.query.shape[2], leaves.value.dtype
        out = self._map(lambda *args: _flat(function(*args).astype(dtype)), leaves, above)
        out = jnp.moveaxis(out.reshape(-1, heads, groups, leaves.value.shape[-1]), 1, 0)
        return out[:, : self.length]

    def _map(self, function: Callable[..., Any], leaves: Leaves, above: Any) -> Any:
        """Results (subtrees, …), recomputed in the backward pass: no score outlives its block."""
        count, width, together = self.subtrees, self.subtree.length, self.together
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


def cut(tree: Tree, blocks: Blocks, length: int) -> Cut | None:
    """The cut of a uniform tree with the largest subtrees up to a block of tokens; None if it is left whole.

    Args:
        tree: over the tokens of all devices.
        blocks: tokens worked on at a time, and the axis over which devices share them.
        length: the tokens of one device.

    Raises:
        ValueError: the tokens of a device are not whole subtrees of a uniform tree.
    """
    shared = blocks.axis_name is not None
    block = length if shared and blocks.tokens is None else blocks.tokens
    width, height = 1, 0
    if block is not None and tree.is_uniform:
        for size in tree.branching:
            if width * size > block or (shared and length % (width * size)):
                break
            width *= size
            height += 1
    if height in (0, tree.height):
        if shared:
            raise ValueError(
                "tree must be uniform with axis_name, with families that are whole on every device: T = "
                f"{length} there must be a multiple of branching[0]; got {tree}."
            )
        return None
    assert block is not None
    crown, subtree = tree.branching[height:], tree.branching[:height]
    count, together = -(-tree.length // width), min(-(-length // width), max(block // width, 1))
    parts = Tree(count, crown, True, True), Tree(width, subtree, True, True)
    return Cut(length, together, *parts, blocks.axis_name)
