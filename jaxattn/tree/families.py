"""Nodes of a tree level seen as families, and back: by reshape for uniform trees, by tables for the others."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxattn.tree.tree import Tree


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _take(x: Array, table: Array, inverse: Array, axis: int, fill: float) -> Array:
    """x at `table` along `axis`, `fill` where the table says −1.

    Every index occurs at most once and `inverse` says where, so that the gradient is a gather as well; the scatter
    that autodiff would make is many times slower on a CPU.
    """
    return _gather(x, table, axis, fill)


def _gather(x: Array, table: Array, axis: int, fill: float | int) -> Array:
    found = jnp.take(x, jnp.maximum(table, 0), axis=axis, mode="clip")
    missing = (table < 0).reshape(table.shape + (1,) * (x.ndim - axis - 1))
    return jnp.where(missing, fill, found)


def _take_forward(x: Array, table: Array, inverse: Array, axis: int, fill: float) -> tuple[Array, Any]:
    return _gather(x, table, axis, fill), (table, inverse)


def _take_backward(axis: int, fill: float, kept: Any, grad: Array) -> tuple[Array, None, None]:
    table, inverse = kept
    flat = grad.reshape(*grad.shape[:axis], -1, *grad.shape[axis + table.ndim :])
    back = _gather(flat, inverse.reshape(-1), axis, 0.0)
    back = back.reshape(*grad.shape[:axis], *inverse.shape, *back.shape[axis + 1 :])
    return back, None, None


_take.defvjp(_take_forward, _take_backward)


def _padded(x: Array, size: int, axis: int, fill: float) -> Array:
    missing = size - x.shape[axis]
    if missing == 0:
        return x
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=fill)


def num_families(tree: Tree, level: int) -> int:
    """F_l, the families of nodes of `level`."""
    if not tree.is_uniform:
        return tree.families[level].shape[0]
    nodes = tree.length
    for size in tree.branching[: level + 1]:
        nodes = -(-nodes // size)
    return nodes


def split(tree: Tree, level: int, x: Array, axis: int, fill: float = 0.0) -> Array:
    """(…, M, …) over the nodes of `level` -> (…, F, b, …); `fill` where a family has no more children."""
    if not tree.is_uniform:
        return _take(x, tree.families[level], tree.places[level], axis, fill)
    families, size = num_families(tree, level), tree.branching[level]
    x = _padded(x, families * size, axis, fill)
    return x.reshape(*x.shape[:axis], families, size, *x.shape[axis + 1 :])


def join(tree: Tree, level: int, x: Array, axis: int, fill: float = 0.0) -> Array:
    """(…, F, b, …) -> (…, M, …), the inverse of `split`; `fill` at nodes that are in no family."""
    flat = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    if not tree.is_uniform:
        return _take(flat, tree.places[level], tree.families[level].reshape(-1), axis, fill)
    nodes = tree.length if level == 0 else num_families(tree, level - 1)
    return lax.slice_in_dim(flat, 0, nodes, axis=axis)


class Rows:
    """Tokens grouped by their ancestor's family at `level` >= 1: what a causal token needs to meet its siblings.

    Attributes:
        split: (…, T, …) -> (…, P, R, …), tokens below one node of level + 1 in a tile.
        join: the inverse.
        of_families: (…, F, …) -> (…, P, …), what belongs to the family that a tile lies under.
        slots: (P, R) the place of every token's ancestor among its siblings; −1 where there is no token.
    """

    def __init__(self, tree: Tree, level: int):
        self.split: Callable[..., Array]
        self.join: Callable[..., Array]
        self.of_families: Callable[..., Array]
        self.slots: Array
        if tree.is_uniform:
            below = int(np.prod(tree.branching[:level]))
            families, size = num_families(tree, level), below * tree.branching[level]

            def split_rows(x: Array, axis: int, fill: float = 0.0) -> Array:
                x = _padded(x, families * size, axis, fill)
                return x.reshape(*x.shape[:axis], families, size, *x.shape[axis + 1 :])

            def join_rows(x: Array, axis: int) -> Array:
                flat = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
                return lax.slice_in_dim(flat, 0, tree.length, axis=axis)

            self.split, self.join = split_rows, join_rows
            self.of_families = lambda x, axis: x
            self.slots = jnp.broadcast_to(jnp.arange(size) // below, (families, size))
            return
        rows, places = tree.rows[level - 1], tree.row_places[level - 1]
        self.split = lambda x, axis, fill=0.0: _take(x, rows, places, axis, fill)
        self.join = lambda x, axis: _take(
            x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :]), places, rows.reshape(-1), axis, 0.0
        )
        self.of_families = lambda x, axis: jnp.take(
            x, jnp.maximum(tree.row_families[level - 1], 0), axis=axis
        )
        self.slots = _gather(tree.row_slots[level - 1], rows, 0, -1)
