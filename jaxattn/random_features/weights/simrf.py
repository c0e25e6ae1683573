"""Rows that point to the corners of a randomly rotated simplex."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Rows
from jaxattn.random_features.weights.draws import check_sizes, haar, num_blocks, row_norms


def simplex(corners: int) -> np.ndarray:
    """The corners of a regular simplex as unit vectors of R^(corners − 1), summing to 0.

    Examples:
        >>> from jaxattn.random_features.weights.simrf import simplex
        >>> simplex(2).tolist()
        [[1.0], [-1.0]]
    """
    size = corners - 1
    points = np.zeros((corners, size))
    for j in range(size):
        # Coordinate j separates corner j from all later ones, which share the rest of its length.
        points[j, j] = np.sqrt(1 - np.square(points[j, :j]).sum())
        points[j + 1 :, j] = -points[j, j] / (size - j)
    return points


@register
@dataclasses.dataclass(frozen=True)
class SimRF(Rows):
    """W = diag(r) S R a block of H rows: R a uniform rotation, S the corners of a regular simplex.

    Any two rows of a block meet at the obtuse angle whose cosine is −1/(H − 1), which gives positive features
    the lowest mean squared error among all couplings of the directions that do not depend on the norms; the gain
    over `orf` is small and largest for narrow heads. With r_m ~ χ(H) every row is N(0, I), so what is unbiased with
    Gaussian rows stays unbiased. O(M H), and O(M H²) to draw. For H = 1 a row is a signed norm.

    Attributes:
        norms: "chi" or "sqrt" (every r_m = sqrt(H)).

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import SimRF
        >>> w = SimRF.create(jax.random.key(0), head_dim=3, num_rows=3, norms="sqrt").matrix()
        >>> jnp.round(w @ w.T / 3, 4)[0].tolist()
        [1.0, -0.5, -0.5]

    Reference: Reid, Choromanski, Likhosherstov & Weller 2023, "Simplex random features".
    """

    norms: str

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, norms: str = "chi") -> "SimRF":
        """Independent blocks stacked, cut to M rows."""
        check_sizes(head_dim, num_rows)
        key_blocks, key_norms = jax.random.split(key)
        radii = row_norms(key_norms, norms, head_dim, num_rows)
        rotations = haar(key_blocks, head_dim, num_blocks(num_rows, head_dim))
        # H corners span only H − 1 dimensions: any H − 1 rows of the rotation will do.
        corners = simplex(head_dim) if head_dim > 1 else np.ones((1, 1))
        rotations = rotations[:, : corners.shape[1]]
        rows = jnp.matmul(
            jnp.asarray(corners, rotations.dtype), rotations, precision=jax.lax.Precision.HIGHEST
        )
        return cls(head_dim, num_rows, radii[:, None] * rows.reshape(-1, head_dim)[:num_rows], norms)
