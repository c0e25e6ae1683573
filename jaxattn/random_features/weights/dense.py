"""Families whose rows have no structure that a fast algorithm could use."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn.random_features.weights.base import Weights, apply_dense


@dataclasses.dataclass(frozen=True)
class Dense(Weights):
    """Weights applied by one dense product with `matrix()`, O(M H); a subclass defines `matrix`."""

    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """One dense product, O(M H)."""
        return apply_dense(self.matrix(), x)

    def apply_plus(self, x: Float[Array, "*batch H"], offset: Float[Array, " M"]) -> Float[Array, "*batch M"]:
        """The offsets as one more column of W: a pass over (…, M) less, which on a CPU costs as much as a product."""
        ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
        rows = jnp.concatenate([self.matrix(), offset[:, None].astype(jnp.float32)], axis=1)
        return apply_dense(rows, jnp.concatenate([x, ones], axis=-1))


@dataclasses.dataclass(frozen=True)
class Rows(Dense):
    """Weights that are kept as their rows."""

    rows: Any  # (M, H)

    def matrix(self) -> Float[Array, "M H"]:
        """The rows."""
        return self.rows
