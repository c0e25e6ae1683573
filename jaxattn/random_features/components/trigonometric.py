"""Trigonometric features, and their hybrid with positive ones."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.components.base import Component, Scaled, half_square, row_offset
from jaxattn.random_features.weights.base import Weights


@register
@dataclasses.dataclass(frozen=True)
class TrigRF(Component):
    """Trigonometric features: f(w, x) = [cos(w·x), sin(w·x)] exp(|x|²/2), two from every row.

    E[f(w, x)·f(w, y)] = exp(x·y), exact where x = y. Not positive: where the true weights are small the estimates are
    noise of either sign, and the sum that attention divides by may be near 0. Take it only where attention is nearly
    uniform. O(M H / 2) a token with dense weights.

    Reference: Rahimi & Recht 2007, "Random features for large-scale kernel machines".
    """

    features_per_row: ClassVar[int] = 2
    positive: ClassVar[bool] = False
    kind: ClassVar[str | None] = "trigonometric"

    def affine(self, weights: Weights, x: Float[Array, "*batch H"]) -> tuple[Array, Array]:
        """The angles w·x, and the logarithm of what multiplies the waves."""
        return weights.apply(x), row_offset(weights)

    def features(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None
    ) -> Scaled:
        """[cos(w·x), sin(w·x)] exp(|x|²/2)."""
        angle, offset = self.affine(weights, x)
        size = jnp.exp(offset)
        return jnp.concatenate([size * jnp.cos(angle), size * jnp.sin(angle)], axis=-1), half_square(x)


@register
@dataclasses.dataclass(frozen=True)
class HRF(Component):
    """Hybrid random features: positive features where x and y are far apart, trigonometric where they are close.

    exp(x·y) = λ exp(x·y) + (1 − λ) exp(x·y) with λ = θ / π for the angle θ between x and y; the first term is
    estimated by PosRF, exact at θ = π, the second by TrigRF, exact at θ = 0. λ itself is estimated from the signs
    s = sgn(u·x) of random directions u, E[s(x) s(y)] = 1 − 2 θ / π, one direction a row:

        φ(x) = 2^-½ [p, ∓ s p, c, s c, d, s d],   p = exp(w·x − |x|²/2),  c, d = exp(|x|²/2) (cos, sin)(w·x),

    with − on the query's side: six features a row, which are not positive. E[φ_q(x)·φ_k(y)] = exp(x·y). Take it where
    both the largest and the smallest weights matter and M can be large. O(M H / 3) a token with dense weights.

    Reference: Choromanski et al. 2022, "Hybrid random features", section 2.4 (angular hybrids).
    """

    directions: Any  # (M, H)

    features_per_row: ClassVar[int] = 6
    positive: ClassVar[bool] = False
    random: ClassVar[tuple[str, ...]] = ("directions",)

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "HRF":
        """Random directions for the signs, independent of the weights."""
        return cls(jax.random.normal(key, (num_rows, head_dim)))

    def resample(self, key: PRNGKeyArray) -> "HRF":
        """New directions."""
        return HRF(jax.random.normal(key, self.directions.shape))

    def features(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None
    ) -> Scaled:
        """The six features of keys."""
        projection, square = weights.apply(x), half_square(x)
        positive_scale = jax.lax.stop_gradient(projection.max(axis=-1)) - square
        scale = jax.lax.stop_gradient(jnp.maximum(positive_scale, square))
        size = jnp.exp(row_offset(weights) - 0.5 * jnp.log(2.0))
        positive = size * jnp.exp(projection - (square + scale)[..., None])
        wave = size * jnp.exp(square - scale)[..., None]
        cos, sin = wave * jnp.cos(projection), wave * jnp.sin(projection)
        side = jnp.where(x @ self.directions.T.astype(x.dtype) < 0, -1.0, 1.0).astype(x.dtype)
        values = [positive, side * positive, cos, side * cos, sin, side * sin]
        return jnp.concatenate(values, axis=-1), scale

    def query(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None = None
    ) -> Scaled:
        """The six features, the second with −."""
        values, scale = super().query(weights, x, scale)
        return values * jnp.repeat(jnp.array([1.0, -1, 1, 1, 1, 1], values.dtype), weights.num_rows), scale
