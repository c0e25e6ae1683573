"""The index arrays of a tree, at their own or at a larger shape."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxattn.tree.outline import Outline
from jaxattn.tree.shape import TreeShape, natural_shape, tiles_of

Arrays = tuple[np.ndarray, ...]


class Tables(NamedTuple):
    """The array fields of a `Tree`."""

    families: Arrays
    places: Arrays
    rows: Arrays = ()
    row_families: Arrays = ()
    row_places: Arrays = ()
    row_slots: Arrays = ()


def build_tables(outline: Outline, shape: TreeShape) -> Tables:
    """The tables of a tree as high as `shape`; raises where it does not fit."""
    families: list[np.ndarray] = []
    places: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    parents: list[np.ndarray] = []
    nodes, size = outline.tokens, shape.length
    for sizes, (count, width) in zip(outline.sizes, shape.families, strict=True):
        parent = np.repeat(np.arange(len(sizes)), sizes)
        slot = np.arange(len(parent)) - (np.cumsum(sizes) - sizes)[parent]
        table = _empty(count, width)
        table[parent, slot] = nodes
        place = _empty(size)
        place[nodes] = parent * width + slot
        for found, new in zip((families, places, slots, parents), (table, place, slot, parent), strict=True):
            found.append(new)
        nodes, size = np.arange(len(sizes)), count
    tables = Tables(tuple(families), tuple(places))
    if shape.tiles is None:
        return tables
    levels = []
    above = parents[0]
    for l, (tiles, width) in enumerate(shape.tiles, 1):
        slot, above = slots[l][above], parents[l][above]
        levels.append(_tile(outline, l, slot, above, tiles, width))
    rows = tuple(zip(*levels, strict=True)) or ((), (), (), ())
    return Tables(tuple(families), tuple(places), *rows)


def _tile(
    outline: Outline,
    level: int,
    slots: Int[np.ndarray, " n"],
    above: Int[np.ndarray, " n"],
    count: int,
    width: int,
) -> Arrays:
    """The tiles of one level; `slots` and `above` are of the ancestors of the leaves at `level` and one higher."""
    under = np.bincount(above)
    tiles = tiles_of(under, width)
    if tiles.sum() > count:
        raise ValueError(
            f"shape.tiles[{level - 1}] = {count, width} is too small: the tree needs {tiles.sum()} tiles of {width} "
            f"tokens at level {level}."
        )
    within = np.arange(len(above)) - (np.cumsum(under) - under)[above]
    flat = (np.cumsum(tiles) - tiles)[above] * width + within
    rows, row_families = _empty(count * width), _empty(count)
    rows[flat] = outline.tokens
    row_families[: tiles.sum()] = np.repeat(np.arange(len(under)), tiles)
    row_places, row_slots = _empty(outline.length), _empty(outline.length)
    row_places[outline.tokens] = flat
    row_slots[outline.tokens] = slots
    return rows.reshape(count, width), row_families, row_places, row_slots


def _empty(*shape: int) -> Int[np.ndarray, "..."]:
    return np.full(shape, -1, np.int32)


def fitted(outline: Outline, shape: TreeShape) -> Outline:
    """The tree with the length and height of `shape`; raises where it does not fit, naming the level."""
    own = natural_shape(outline)
    if shape.length < own.length:
        raise ValueError(f"shape.length must be at least {own.length}, that of the tree; got {shape.length}.")
    if len(shape.families) < len(own.families):
        raise ValueError(
            f"shape.families must have at least {len(own.families)} levels, the height of the tree; got "
            f"{len(shape.families)}."
        )
    if shape.families[-1][0] != 1:
        raise ValueError(f"shape.families[-1] must be (1, b), the root; got {shape.families[-1]}.")
    if shape.tiles is not None and len(shape.tiles) != len(shape.families) - 1:
        raise ValueError(
            f"shape.tiles must have one entry less than the {len(shape.families)} of shape.families; got "
            f"{len(shape.tiles)}."
        )
    if shape.tiles is not None and own.tiles is None:
        raise ValueError(
            "shape.tiles must be None: the leaves of this tree are not in the order of the sequence; got "
            f"{shape.tiles}."
        )
    raised = outline.raised(len(shape.families))
    for level, (sizes, given) in enumerate(zip(raised.sizes, shape.families, strict=True)):
        if len(sizes) > given[0] or sizes.max() > given[1]:
            raise ValueError(
                f"shape.families[{level}] = {given} is too small: level {level} of the tree has {len(sizes)} "
                f"families of up to {sizes.max()} nodes."
            )
    return raised._replace(length=shape.length)


def read_outline(length: int, tables: Tables) -> Outline:
    """The outline that tables came from."""
    families = [np.asarray(table) for table in tables.families]
    sizes = [(table >= 0).sum(axis=1) for table in families]
    # Padding rows are the last of a level.
    return Outline(length, families[0][families[0] >= 0], tuple(s[s > 0] for s in sizes))
