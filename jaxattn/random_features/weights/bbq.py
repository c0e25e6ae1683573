"""Learned quantile functions."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.checks import check_choice
from jaxattn.core.pytree import register
from jaxattn.random_features.weights.dense import Dense
from jaxattn.random_features.weights.draws import check_count, check_sizes
from jaxattn.random_features.weights.qmc import halton, sobol

_RANGE = 2.5  # the knots lie within; outside, where few points fall, the outermost slopes continue


def _scores(key: PRNGKeyArray, points: str, num_rows: int, head_dim: int) -> Float[Array, "M H"]:
    """Standard normal scores Φ⁻¹(u) of points in the unit cube."""
    if points == "uniform":
        return jax.random.normal(key, (num_rows, head_dim))
    sequence = sobol if points == "sobol" else halton
    return jax.scipy.special.ndtri(sequence(key, num_rows, head_dim))


@register
@dataclasses.dataclass(frozen=True)
class BBQ(Dense):
    """w_mj = q_j(u_mj): a learned quantile function for each dimension, at points u of the unit cube.

    q_j(u) = b_j + g_j(Φ⁻¹(u)), g_j piecewise linear with g_j(0) = 0 and slopes exp(a_jk) > 0, so q_j is
    increasing whatever the parameters are. At a = b = 0 it is the normal quantile function and w ~ N(0, I).
    The dimensions are independent of each other, whatever is learned.

    Attributes:
        points: "uniform", or the randomised sequences of QMC: "sobol" or "halton".
        log_slopes: a.
        offsets: b.
        scores: Φ⁻¹(u).

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import BBQ
        >>> weights = BBQ.create(jax.random.key(0), head_dim=8, num_rows=12, points="sobol")
        >>> weights.apply(jnp.ones((2, 8))).shape
        (2, 12)

    Reference: Tompkins, Senanayake, Morere & Ramos 2019, "Black box quantiles for kernel learning".
    """

    trainable: ClassVar[tuple[str, ...]] = ("log_slopes", "offsets")

    points: str
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
        """`num_pieces` linear pieces a dimension, at the normal quantile."""
        check_sizes(head_dim, num_rows)
        check_choice("points", points, ("uniform", "sobol", "halton"))
        check_count("num_pieces", num_pieces)
        slopes = jnp.zeros((num_pieces, head_dim))
        scores = _scores(key, points, num_rows, head_dim)
        return cls(head_dim, num_rows, points, slopes, jnp.zeros(head_dim), scores)

    def matrix(self) -> Float[Array, "M H"]:
        """The rows."""
        pieces = self.log_slopes.shape[0]
        knots = np.concatenate([[-np.inf], np.linspace(-_RANGE, _RANGE, pieces + 1)[1:-1], [np.inf]])
        rows = self.offsets
        for k in range(pieces):
            covered = jnp.clip(self.scores, knots[k], knots[k + 1]) - np.clip(0.0, knots[k], knots[k + 1])
            rows = rows + jnp.exp(self.log_slopes[k]) * covered
        return rows

    def resample(self, key: PRNGKeyArray) -> "BBQ":
        """New points."""
        scores = _scores(key, self.points, self.num_rows, self.head_dim)
        return dataclasses.replace(self, scores=scores)
