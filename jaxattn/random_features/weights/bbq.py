"""Learned quantile functions."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.checks import check_choice
from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Dense
from jaxattn.random_features.weights.draws import check_count, check_sizes
from jaxattn.random_features.weights.qmc import SEQUENCES

# The knots lie within ±_RANGE; beyond, where few points fall, the outermost slopes continue.
_RANGE = 2.5


@register
@dataclasses.dataclass(frozen=True)
class BBQ(Dense):
    """w_mj = q_j(u_mj): a learned quantile function for each dimension, at points u of the unit cube.

    q_j(u) = b_j + g_j(Φ⁻¹(u)), g_j piecewise linear with g_j(0) = 0 and slopes exp(a_jk) > 0, so q_j is
    increasing whatever the parameters are. At a = b = 0 it is the normal quantile function and w ~ N(0, I); trained,
    the features estimate a learned kernel instead of exp(x·y), whose spectral density has independent dimensions.
    O(M H), and (pieces + 1) H numbers are trained.

    Attributes:
        points: "uniform", or the randomised sequences of QMC: "sobol" or "halton".
        num_pieces: linear pieces a dimension.
        log_slopes: a.
        offsets: b.
        scores: Φ⁻¹(u).

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import BBQ
        >>> weights = BBQ.create(jax.random.key(0), head_dim=8, num_rows=12)
        >>> bool(jnp.allclose(weights.matrix(), weights.scores, atol=1e-5))  # N(0, I) at the start
        True

    Reference: Tompkins, Senanayake, Morere & Ramos 2019, "Black box quantiles for kernel learning".
    """

    trainable: ClassVar[tuple[str, ...]] = ("log_slopes", "offsets")

    points: str
    num_pieces: int
    log_slopes: Any  # (pieces, H)
    offsets: Any  # (H,)
    scores: Any  # (M, H)

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        head_dim: int,
        num_rows: int,
        *,
        points: str = "uniform",
        num_pieces: int = 8,
    ) -> "BBQ":
        """The normal quantile function in `num_pieces` linear pieces a dimension."""
        check_sizes(head_dim, num_rows)
        check_choice("points", points, ("uniform", *SEQUENCES))
        check_count("num_pieces", num_pieces)
        if points == "uniform":
            scores = jax.random.normal(key, (num_rows, head_dim))
        else:
            scores = jax.scipy.special.ndtri(SEQUENCES[points](key, num_rows, head_dim))
        slopes = jnp.zeros((num_pieces, head_dim))
        return cls(head_dim, num_rows, points, num_pieces, slopes, jnp.zeros(head_dim), scores)

    def matrix(self) -> Float[Array, "M H"]:
        """The quantiles."""
        inner = np.linspace(-_RANGE, _RANGE, self.num_pieces + 1)[1:-1]
        knots = np.concatenate([[-np.inf], inner, [np.inf]])
        rows = self.offsets
        for k in range(self.num_pieces):
            covered = jnp.clip(self.scores, knots[k], knots[k + 1]) - np.clip(0.0, knots[k], knots[k + 1])
            rows = rows + jnp.exp(self.log_slopes[k]) * covered
        return rows
