"""Rows whose sample moments match the normal's exactly."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Rows
from jaxattn.random_features.weights.draws import check_sizes


@register
@dataclasses.dataclass(frozen=True)
class MM(Rows):
    """Normal rows, centred and whitened: (1/M) Σ w_m = 0 and (1/M) Σ w_m w_m' = I in every single draw.

    With U S V' the singular value decomposition of the centred rows, W = sqrt(M) U V', the closest such matrix.

    The covariance needs M > H. For M ≤ H, where M centred rows span M − 1 dimensions only, W is
    sqrt(M H / (M − 1)) U V': mean 0, as much variance in every direction of the span, and I on average over
    draws. For M = 1 no row but 0 has mean 0: it is a random direction of norm sqrt(H).

    The rows are neither normal nor independent, so what is unbiased with Gaussian rows gets a bias of order 1/M.
    O(M H), and O(M H²) to draw.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import MM
        >>> w = MM.create(jax.random.key(0), head_dim=2, num_rows=5).matrix()
        >>> bool(jnp.allclose(w.T @ w / 5, jnp.eye(2), atol=1e-5))
        True

    Reference: Shen, Yang & Wang 2017, "Random features for shift-invariant kernels with moment matching".
    """

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "MM":
        """Draws, centres and whitens."""
        check_sizes(head_dim, num_rows)
        rows = jax.random.normal(key, (num_rows, head_dim))
        if num_rows > 1:
            rows = rows - rows.mean(axis=0)
        rank = min(max(num_rows - 1, 1), head_dim)
        left, _, right = jnp.linalg.svd(rows, full_matrices=False)
        # The moments are only as exact as this product, which some accelerators round by default.
        whitened = jnp.matmul(left[:, :rank], right[:rank], precision=jax.lax.Precision.HIGHEST)
        return cls(head_dim, num_rows, (num_rows * head_dim / rank) ** 0.5 * whitened)
