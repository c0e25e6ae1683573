"""The index arrays of a tree, at its own or at a larger shape."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxattn.tree.builders.outline import Outline
from jaxattn.tree.shape import TreeShape, count_tiles, natural_shape

Arrays = tuple[np.ndarray, ...]


class Tables(NamedTuple):
    """The array fields of a `Tree`."""

    children: Arrays
    inverse: Arrays
    query_tiles: Arrays = ()
    tile_parent: Arrays = ()
    tile_inverse: Arrays = ()
    child_slot: Arrays = ()


def build_tables(outline: Outline, shape: TreeShape) -> Tables:
    """The tables of a tree as high as `shape`; raises where it does not fit."""
    children, inverse = [], []
    links = []  # (parent, slot among its children) of every node of a level
    nodes, size = outline.tokens, shape.length
    for sizes, (count, width) in zip(outline.sizes, shape.children, strict=True):
        parent = np.repeat(np.arange(len(sizes)), sizes)
        slot = np.arange(len(parent)) - (np.cumsum(sizes) - sizes)[parent]
        table, back = _empty(count, width), _empty(size)
        table[parent, slot] = nodes
        back[nodes] = parent * width + slot
        children.append(table)
        inverse.append(back)
        links.append((parent, slot))
        nodes, size = np.arange(len(sizes)), count
    tables = Tables(tuple(children), tuple(inverse))
    if not shape.query_tiles:
        return tables
    levels = []
    above = links[0][0]
    for level, (count, width) in enumerate(shape.query_tiles, 1):
        parent, slot = links[level]
        slot, above = slot[above], parent[above]
        levels.append(_tiles(outline, level, slot, above, count, width))
    return Tables(*tables[:2], *zip(*levels, strict=True))


def _tiles(
    outline: Outline,
    level: int,
    slots: Int[np.ndarray, " n"],
    above: Int[np.ndarray, " n"],
    count: int,
    width: int,
) -> Arrays:
    """The tiles of one level; `slots` are of the leaves' ancestors at `level`, `above` their parents."""
    under = np.bincount(above)
    tiles = count_tiles(under, width)
    if tiles.sum() > count:
        raise ValueError(
            f"shape.query_tiles[{level - 1}] = {count, width} is too small: the tree needs {tiles.sum()} tiles of "
            f"{width} tokens at level {level}."
        )
    within = np.arange(len(above)) - (np.cumsum(under) - under)[above]
    flat = (np.cumsum(tiles) - tiles)[above] * width + within
    query_tiles, tile_parent = _empty(count * width), _empty(count)
    query_tiles[flat] = outline.tokens
    tile_parent[: tiles.sum()] = np.repeat(np.arange(len(under)), tiles)
    tile_inverse, child_slot = _empty(outline.length), _empty(outline.length)
    tile_inverse[outline.tokens] = flat
    child_slot[outline.tokens] = slots
    return query_tiles.reshape(count, width), tile_parent, tile_inverse, child_slot


def _empty(*shape: int) -> Int[np.ndarray, "..."]:
    return np.full(shape, -1, np.int32)


def fit(outline: Outline, shape: TreeShape) -> Outline:
    """The tree with the length and height of `shape`; raises where it does not fit, naming the level."""
    own = natural_shape(outline)
    height = len(shape.children)
    if shape.length < own.length:
        raise ValueError(f"shape.length must be at least {own.length}, that of the tree; got {shape.length}.")
    if height < len(own.children):
        raise ValueError(
            f"shape.children must have at least {len(own.children)} levels, the height of the tree; got {height}."
        )
    if shape.children[-1][0] != 1:
        raise ValueError(f"shape.children[-1] must be (1, b), the root; got {shape.children[-1]}.")
    if shape.query_tiles is not None and len(shape.query_tiles) != height - 1:
        raise ValueError(
            f"shape.query_tiles must have {height - 1} entries, one fewer than shape.children; got "
            f"{len(shape.query_tiles)}."
        )
    if shape.query_tiles is not None and own.query_tiles is None:
        raise ValueError(
            "shape.query_tiles must be None: the leaves of this tree are not in sequence order; got "
            f"{shape.query_tiles}."
        )
    raised = outline.raised(height)
    for level, (sizes, given) in enumerate(zip(raised.sizes, shape.children, strict=True)):
        if len(sizes) > given[0] or sizes.max() > given[1]:
            raise ValueError(
                f"shape.children[{level}] = {given} is too small: level {level} of the tree has {len(sizes)} "
                f"families of up to {sizes.max()} nodes."
            )
    return raised._replace(length=shape.length)


def read_outline(length: int, children: tuple[Any, ...]) -> Outline:
    """The outline that tables of children were built from."""
    tables = [np.asarray(table) for table in children]
    sizes = [(table >= 0).sum(axis=1) for table in tables]
    # Padding rows are the last of a level.
    return Outline(length, tables[0][tables[0] >= 0], tuple(s[s > 0] for s in sizes))
