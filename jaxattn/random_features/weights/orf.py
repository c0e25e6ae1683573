"""Orthogonal rows."""

import dataclasses

import jax
from jaxtyping import PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.dense import Rows
from jaxattn.random_features.weights.draws import check_sizes, haar, num_blocks, row_norms


@register
@dataclasses.dataclass(frozen=True)
class ORF(Rows):
    """Rows orthogonal within each block of H: W = diag(r) Q with Q uniform over the orthogonal matrices.

    With r_m ~ χ(H) every row is N(0, I), so what is unbiased with Gaussian rows stays unbiased, and the rows
    no longer repeat each other's directions, so the variance falls. With r_m = sqrt(H) ("sqrt") the rows
    only keep the covariance.

    Attributes:
        norms: "chi" or "sqrt".

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import ORF
        >>> weights = ORF.create(jax.random.key(0), head_dim=8, num_rows=12)
        >>> weights.apply(jnp.ones((2, 8))).shape
        (2, 12)

    Reference: Yu, Suresh, Choromanski, Holtmann-Rice & Kumar 2016, "Orthogonal random features".
    """

    norms: str

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, norms: str = "chi") -> "ORF":
        """Independent Haar blocks one below the other, cut to M rows."""
        check_sizes(head_dim, num_rows)
        key_blocks, key_norms = jax.random.split(key)
        radii = row_norms(key_norms, norms, head_dim, num_rows)
        blocks = haar(key_blocks, head_dim, num_blocks(num_rows, head_dim))
        return cls(head_dim, num_rows, radii[:, None] * blocks.reshape(-1, head_dim)[:num_rows], norms)

    def resample(self, key: PRNGKeyArray) -> "ORF":
        """New blocks and norms."""
        return self.create(key, self.head_dim, self.num_rows, norms=self.norms)
