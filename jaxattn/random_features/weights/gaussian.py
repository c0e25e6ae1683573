"""Independent standard normal rows."""

import dataclasses

import jax
from jaxtyping import PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.dense import Rows
from jaxattn.random_features.weights.draws import check_sizes


@register
@dataclasses.dataclass(frozen=True)
class Gaussian(Rows):
    """Rows drawn from N(0, I), the plain Monte Carlo choice: every component function is unbiased with it.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import Gaussian
        >>> weights = Gaussian.create(jax.random.key(0), head_dim=8, num_rows=5)
        >>> weights.apply(jnp.ones((2, 8))).shape
        (2, 5)

    Reference: Rahimi & Recht 2007, "Random features for large-scale kernel machines".
    """

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "Gaussian":
        """M independent rows."""
        check_sizes(head_dim, num_rows)
        return cls(head_dim, num_rows, jax.random.normal(key, (num_rows, head_dim)))

    def resample(self, key: PRNGKeyArray) -> "Gaussian":
        """New rows."""
        return self.create(key, self.head_dim, self.num_rows)
