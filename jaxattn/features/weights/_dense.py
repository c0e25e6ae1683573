"""Families whose rows have no structure that a fast algorithm could use."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float

from jaxattn.features.weights.base import Weights, apply_dense


@dataclasses.dataclass(frozen=True)
class Dense(Weights):
    """Weights applied by one dense product with `matrix()`, O(M H); a subclass defines `matrix`."""

    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """One dense product, O(M H)."""
        return apply_dense(self.matrix(), x)


@dataclasses.dataclass(frozen=True)
class Rows(Dense):
    """Weights that are kept as their rows."""

    rows: Any  # (M, H)

    def matrix(self) -> Float[Array, "M H"]:
        """The rows."""
        return self.rows
