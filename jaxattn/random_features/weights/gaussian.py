"""Independent standard normal rows."""

import dataclasses

import jax
from jaxtyping import PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Rows
from jaxattn.random_features.weights.draws import check_sizes


@register
@dataclasses.dataclass(frozen=True)
class Gaussian(Rows):
    """w_m ~ N(0, I), independent: plain Monte Carlo, with which every component function is unbiased.

    The reference to compare others with; `orf` has less variance at the same cost, O(M H).

    Examples:
        >>> import jax
        >>> from jaxattn.random_features.weights import Gaussian
        >>> Gaussian.create(jax.random.key(0), head_dim=8, num_rows=5).matrix().shape
        (5, 8)

    Reference: Rahimi & Recht 2007, "Random features for large-scale kernel machines".
    """

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "Gaussian":
        """M independent rows."""
        check_sizes(head_dim, num_rows)
        return cls(head_dim, num_rows, jax.random.normal(key, (num_rows, head_dim)))
