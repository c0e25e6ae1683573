"""Uniform trees cut into tiles of consecutive subtrees, as fused kernels work on them."""

import itertools
import operator
from typing import NamedTuple

from jaxattn.core.pallas.choice import LANES
from jaxattn.core.pallas.parts import Parts

# Tokens a tile: their scores stay in VMEM.
TILE = 1024


class Tiling(NamedTuple):
    """A uniform tree in two parts: tiles of consecutive subtrees, and the crown over the roots of the subtrees.

    Attributes:
        branching: of a subtree, from the leaves up.
        roots: subtrees R a tile; siblings if there is a crown, else one subtree and padding.
        crown: branching of the crown, () if one subtree is the whole tree.
    """

    branching: tuple[int, ...]
    roots: int
    crown: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Tokens below a node of every level of a subtree, leaves and root included."""
        found = [1]
        for size in self.branching:
            found.append(found[-1] * size)
        return tuple(found)

    @property
    def tiles_below(self) -> tuple[int, ...]:
        """Tiles below a family of every level of the crown."""
        return tuple(roots // self.roots for roots in itertools.accumulate(self.crown, operator.mul))

    @property
    def chunk(self) -> int:
        """Tokens C a tile."""
        return self.roots * self.widths[-1]

    @property
    def block(self) -> int:
        """Tokens W whose leaf families are scored together."""
        return max(LANES, self.branching[0])

    @property
    def num_blocks(self) -> int:
        """Blocks S a tile."""
        return self.chunk // self.block

    def nodes(self, level: int) -> int:
        """Nodes of one level in a tile."""
        return self.chunk // self.widths[level]


class Fused(NamedTuple):
    """The choice of the fused kernels, what is static about them, and how it is cut among devices."""

    tiling: Tiling
    include_self: bool
    parts: Parts | None = None


def cut_tiles(branching: tuple[int, ...], most: int = TILE) -> Tiling:
    """The largest subtrees up to `most` tokens whose sizes are powers of two, and as many together."""
    height, width, roots = 0, 1, 1
    while (
        height < len(branching) and _is_power_of_two(branching[height]) and width * branching[height] <= most
    ):
        width *= branching[height]
        height += 1
    crown = branching[height:]
    if not crown:
        return Tiling(branching, max(1, LANES // width), ())
    while crown and crown[0] % (2 * roots) == 0 and 2 * roots * width <= most:
        roots *= 2
    return Tiling(branching[:height], roots, crown)


def _is_power_of_two(size: int) -> bool:
    return size & (size - 1) == 0
