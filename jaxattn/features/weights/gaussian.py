"""Independent standard normal rows."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.features.weights._draws import check_sizes
from jaxattn.features.weights.base import Weights, apply_dense, register


@register
@dataclasses.dataclass(frozen=True)
class Gaussian(Weights):
    """Rows drawn from N(0, I), the plain Monte Carlo choice: every component function is unbiased with it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.features.weights import Gaussian
        >>> weights = Gaussian.create(jax.random.key(0), head_dim=8, num_rows=5)
        >>> weights.apply(jnp.ones((2, 8))).shape
        (2, 5)

    Reference: Rahimi & Recht 2007, "Random features for large-scale kernel machines".
    """

    rows: Any  # (M, H)

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "Gaussian":
        """M independent rows."""
        check_sizes(head_dim, num_rows)
        return cls(head_dim, num_rows, jax.random.normal(key, (num_rows, head_dim)))

    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """One dense product, O(M H)."""
        return apply_dense(self.rows, x)

    def matrix(self) -> Float[Array, "M H"]:
        """The rows."""
        return self.rows

    def resample(self, key: PRNGKeyArray) -> "Gaussian":
        """New rows."""
        return self.create(key, self.head_dim, self.num_rows)
