"""The stochastic spherical-radial quadrature rule of degree 3."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.checks import check_choice
from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Rows
from jaxattn.random_features.weights.draws import check_sizes, chi, haar, num_blocks
from jaxattn.random_features.weights.simrf import simplex


@register
@dataclasses.dataclass(frozen=True)
class SSR(Rows):
    """Rows ±ρ v Q, v the corners of a simplex or orthoplex, Q a uniform rotation, ρ ~ χ(H + 2).

    The rule E f(w) ≈ (1 − H/ρ²) f(0) + (H/ρ²) mean_v [f(ρ v Q) + f(−ρ v Q)] / 2 is exact for polynomials of degree
    3 and unbiased for every f. A block is one (ρ, Q) with the 2 (H + 1) points of the simplex or the 2 H of the
    orthoplex; blocks are stacked, the last one is cut. All blocks share the first row, 0, with the remaining weight.

    That weight is 0 on average and negative in about every second draw, where positive features may give a
    negative kernel value. Without that row (`center=False`, always so for M = 1) all weights are positive and
    the rule stays unbiased, but its weights no longer sum to 1, which costs variance. The weight H/ρ² varies most
    for small H; at H ≤ 2 its variance is infinite. O(M H), and O(M H²) to draw.

    Attributes:
        vertices: "simplex" or "orthoplex".
        center: whether the first row is 0.
        log_row_weights: log of M times the weight's size.
        row_signs: the weight's sign; None where all are positive.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import SSR
        >>> weights = SSR.create(jax.random.key(0), head_dim=6, num_rows=15)
        >>> total = jnp.sum(weights.signs * jnp.exp(weights.log_weights)) / 15
        >>> round(float(total), 4)
        1.0

    Reference: Munkhoeva, Kapushev, Burnaev & Oseledets 2018, "Quadrature-based features for kernel
    approximation".
    """

    vertices: str
    center: bool
    log_row_weights: Any  # (M,)
    row_signs: Any  # (M,) or None

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        head_dim: int,
        num_rows: int,
        *,
        vertices: str = "simplex",
        center: bool = True,
    ) -> "SSR":
        """Draws the rotation and the radius of every block."""
        check_sizes(head_dim, num_rows)
        check_choice("vertices", vertices, ("simplex", "orthoplex"))
        check_choice("center", center, (True, False))
        points = simplex(head_dim + 1) if vertices == "simplex" else np.eye(head_dim)
        # Mirror images are neighbours, so that the cut separates at most one pair.
        reflected = np.stack([points, -points], axis=1).reshape(-1, head_dim)
        has_center = center and num_rows > 1
        outer = num_rows - has_center
        blocks = num_blocks(outer, len(reflected))
        key_rotation, key_radius = jax.random.split(key)
        radius = chi(key_radius, head_dim + 2, (blocks,))
        rotations = haar(key_rotation, head_dim, blocks)
        corners = jnp.asarray(reflected, radius.dtype)
        turned = jnp.matmul(corners, rotations, precision=jax.lax.Precision.HIGHEST)
        rows = (radius[:, None, None] * turned).reshape(-1, head_dim)[:outer]
        weight = jnp.repeat(head_dim / jnp.square(radius), len(reflected))[:outer]
        log_weights = jnp.log(weight * (num_rows / outer))
        if not has_center:
            return cls(head_dim, num_rows, rows, vertices, center, log_weights, None)
        left = 1 - weight.mean()
        log_left = jnp.log(jnp.maximum(jnp.abs(left), 1e-30) * num_rows)
        return cls(
            head_dim,
            num_rows,
            jnp.concatenate([jnp.zeros((1, head_dim)), rows]),
            vertices,
            center,
            jnp.concatenate([log_left[None], log_weights]),
            jnp.ones(num_rows).at[0].set(jnp.where(left < 0, -1.0, 1.0)),
        )

    @property
    def log_weights(self) -> Float[Array, " M"]:
        """log of M times the size of the rule's weights."""
        return self.log_row_weights

    @property
    def signs(self) -> Float[Array, " M"] | None:
        """1 for all rows but the first."""
        return self.row_signs
