"""What the gradient of segments without causality hands from its sweep for the queries to that for the keys."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.pallas.layout import Blocks
from jaxattn.linear.pallas.chunk import Divisor
from jaxattn.linear.pallas.states import Kept


class Handed(NamedTuple):
    """Arrays in memory; in a kernel those of one chunk.

    divisors (B, K, 2 G, T): `Divisor.inverse` of all groups, and their `delta`; of_later: the cotangents, from
    queries before every chunk, of the state that has its keys among the later ones.
    """

    divisors: Any
    of_later: Kept

    def specs(self, blocks: Blocks) -> "Handed":
        """Of the blocks."""
        return Handed(blocks.row(count=self.divisors.shape[2]), self.of_later.specs(blocks))

    def store(self, divisor: Divisor, g: int, groups: int) -> None:
        """Puts the divisor of a group there."""
        self.divisors[g : g + 1, :] = divisor.inverse
        self.divisors[groups + g : groups + g + 1, :] = divisor.delta

    def load(self, g: int, groups: int, valid: Array | None) -> Divisor:
        """The divisor of a group; padding, where nothing was written, has none."""
        rows = (self.divisors[i : i + 1, :] for i in (g, groups + g))
        return Divisor(*(x if valid is None else jnp.where(valid, x, 0) for x in rows))
