"""Nodes grouped by parent and tokens grouped into query tiles: by reshape for uniform trees, else by index tables."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxattn.tree.tree import Tree


class Grouping(NamedTuple):
    """A map (K, size, …) <-> (K, groups, width, …) and its inverse.

    Attributes:
        size: entries before grouping.
        shape: (groups, width).
        table: (groups, width) index of every entry, −1 for none; without it groups are consecutive entries.
        inverse: (size,) the flat index in `table` of every entry, −1 for none.
    """

    size: int
    shape: tuple[int, int]
    table: Array | None = None
    inverse: Array | None = None

    def split(self, x: Array, fill: float = 0.0) -> Array:
        """(K, size, …) -> (K, groups, width, …); `fill` where a group has fewer entries."""
        if self.table is not None:
            return _take(x, self.table, self.inverse, fill)
        if missing := self.shape[0] * self.shape[1] - self.size:
            widths = [(0, missing if axis == 1 else 0) for axis in range(x.ndim)]
            x = jnp.pad(x, widths, constant_values=fill)
        return x.reshape(x.shape[0], *self.shape, *x.shape[2:])

    def join(self, x: Array) -> Array:
        """(K, groups, width, …) -> (K, size, …), the inverse of `split`; 0 for entries that are in no group."""
        flat = x.reshape(x.shape[0], -1, *x.shape[3:])
        if self.table is not None:
            return _take(flat, self.inverse, self.table.reshape(-1), 0.0)
        return flat[:, : self.size]


class QueryTiles(NamedTuple):
    """Tokens in tiles below one node of level + 1, where causal tokens score that node's children.

    Attributes:
        tokens: the grouping of tokens into P tiles of R.
        slots: (P or 1, R) which child of the node each token is below; −1 where there is no token.
        parent: (P,) the node; None if tile p belongs to node p.
    """

    tokens: Grouping
    slots: Array
    parent: Array | None = None

    def of_parent(self, x: Array) -> Array:
        """(K, F, …) over nodes of level + 1 -> (K, P, …)."""
        return x if self.parent is None else jnp.take(x, jnp.maximum(self.parent, 0), axis=1)


def num_parents(tree: Tree, level: int) -> int:
    """F_l, the number of nodes of level + 1."""
    if not tree.is_uniform:
        return tree.children[level].shape[0]
    nodes = tree.length
    for size in tree.branching[: level + 1]:
        nodes = -(-nodes // size)
    return nodes


def siblings(tree: Tree, level: int) -> Grouping:
    """The nodes of `level` grouped by parent."""
    size = tree.length if level == 0 else num_parents(tree, level - 1)
    shape = num_parents(tree, level), tree.branching[level]
    return Grouping(size, shape, *(() if tree.is_uniform else (tree.children[level], tree.inverse[level])))


def query_tiles(tree: Tree, level: int) -> QueryTiles:
    """The tokens grouped by their ancestor at level + 1; at level 0 these are the siblings."""
    if level == 0:
        return QueryTiles(siblings(tree, 0), jnp.arange(tree.branching[0])[None])
    if tree.is_uniform:
        below = int(np.prod(tree.branching[:level]))
        width = below * tree.branching[level]
        tokens = Grouping(tree.length, (num_parents(tree, level), width))
        return QueryTiles(tokens, (jnp.arange(width) // below)[None])
    tiles = tree.query_tiles[level - 1]
    slots = jnp.where(tiles < 0, -1, jnp.take(tree.child_slot[level - 1], jnp.maximum(tiles, 0)))
    tokens = Grouping(tree.length, tiles.shape, tiles, tree.tile_inverse[level - 1])
    return QueryTiles(tokens, slots, tree.tile_parent[level - 1])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _take(x: Array, table: Array, inverse: Array, fill: float) -> Array:
    """x at `table` along axis 1, `fill` where the table is −1.

    Every index occurs at most once and `inverse` says where, so the gradient is a gather too; the scatter of
    automatic differentiation is many times slower on a CPU.
    """
    return _gather(x, table, fill)


def _gather(x: Array, table: Array, fill: float) -> Array:
    found = jnp.take(x, jnp.maximum(table, 0), axis=1, mode="clip")
    missing = (table < 0).reshape(table.shape + (1,) * (x.ndim - 2))
    return jnp.where(missing, fill, found)


def _take_forward(x: Array, table: Array, inverse: Array, fill: float) -> tuple[Array, Any]:
    return _gather(x, table, fill), (table, inverse)


def _take_backward(fill: float, residuals: Any, grad: Array) -> tuple[Array, None, None]:
    table, inverse = residuals
    flat = grad.reshape(grad.shape[0], -1, *grad.shape[1 + table.ndim :])
    back = _gather(flat, inverse.reshape(-1), 0.0)
    return back.reshape(grad.shape[0], *inverse.shape, *back.shape[2:]), None, None


_take.defvjp(_take_forward, _take_backward)
