"""Rows of any weight family as a dense matrix, so that a component compiles once for all families."""

import dataclasses
from functools import partial
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp

from jaxattn import FeatureMap
from jaxattn.core.pytree import register
from jaxattn.random_features import Weights
from jaxattn.random_features.weights.base import apply_dense


@register
@dataclasses.dataclass(frozen=True)
class DrawnRows(Weights):
    """The rows of another weight matrix, with its quadrature weights and signs."""

    rows: Any  # (M, H)
    row_log_weights: Any  # (M,), 0 where the family has none
    row_signs: Any  # (M,), 1 where the family has none
    from_quadrature: bool

    @classmethod
    def create(cls, *_: Any, **__: Any) -> NoReturn:
        """Not drawn but copied."""
        raise NotImplementedError("use DrawnRows.of.")

    @classmethod
    def of(cls, weights: Weights) -> Self:
        """The same matrix."""
        zero = jnp.zeros(weights.num_rows)
        log_weights = zero if weights.log_weights is None else weights.log_weights
        signs = zero + 1 if weights.signs is None else weights.signs
        return cls(
            weights.head_dim, weights.num_rows, weights.matrix(), log_weights, signs, weights.is_quadrature
        )

    def apply(self, x: jax.Array) -> jax.Array:
        """One dense product."""
        return apply_dense(self.rows, x)

    def matrix(self) -> jax.Array:
        """The rows."""
        return self.rows

    def resample(self, key: jax.Array) -> Self:
        """Itself: there is nothing to draw from."""
        return self

    @property
    def is_quadrature(self) -> bool:  # type: ignore[override]
        """As in the original."""
        return self.from_quadrature

    @property
    def log_weights(self) -> jax.Array:
        """As in the original."""
        return self.row_log_weights

    @property
    def signs(self) -> jax.Array:
        """As in the original."""
        return self.row_signs


@partial(jax.jit, static_argnames=("head_dim", "num_rows", "weights"))
def draw_rows(keys: jax.Array, head_dim: int, num_rows: int, weights: str) -> DrawnRows:
    """The rows that `FeatureMap.create` draws with each of `keys`; every leaf has a leading axis of keys."""

    def one(key: jax.Array) -> DrawnRows:
        # posrf makes one feature of every row.
        return DrawnRows.of(FeatureMap.create(key, head_dim, num_rows, "posrf", weights).weights)

    return jax.vmap(one)(keys)
