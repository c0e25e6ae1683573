"""Positive features exp(w'Aw + w'Bx + x'Cx): PosRF, GERF, OPRF, SDERF, ADERF, SADERF."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.components.base import (
    Component,
    Scaled,
    exponentials,
    half_square,
    row_offset,
    signed,
)
from jaxattn.random_features.moments import Moments, balancing_map, balancing_scale, best_a, sum_second
from jaxattn.random_features.weights.base import Weights


def _features(weights: Weights, x: Array, a: Array) -> tuple[Array, Array]:
    """Logarithms (…, M) and scale (…) of D exp(w'Aw + w'Bx − |x|²/2), with A = diag(a) or a I.

    B = (I − 4A)^½ and D = det(I − 4A)^¼, so that the mean of a product over w ~ N(0, I) is exp(x·y).
    """
    width = x.shape[-1]
    diagonal = jnp.broadcast_to(a, (width,)).astype(x.dtype)
    constant = weights.quadratic(diagonal) + 0.25 * jnp.log1p(-4 * diagonal).sum() + row_offset(weights)
    # The offsets go through a product, which accelerators round: the smaller they are, the less.
    middle = constant.mean()
    scaled = jnp.sqrt(1 - 4 * a).astype(x.dtype) * x
    return weights.apply_plus(scaled, constant - middle), middle - half_square(x)


@register
@dataclasses.dataclass(frozen=True)
class PosRF(Component):
    """Positive random features (FAVOR+): f(w, x) = exp(w·x − |x|²/2).

    With `hyperbolic` every row is used twice, as w and as −w: half as many rows for the same number of features, and
    a variance no larger.

    Reference: Choromanski et al. 2021, "Rethinking attention with Performers", lemma 1 and equation 6.
    """

    hyperbolic: bool

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, hyperbolic: bool = False) -> "PosRF":
        """No parameters."""
        del key, head_dim, num_rows
        return cls(hyperbolic)

    @classmethod
    def rows_for(cls, num_features: int, **options: Any) -> int:
        """Half as many rows if every row is used twice."""
        return max(1, num_features // 2) if options.get("hyperbolic") else num_features

    def _features(self, weights: Weights, x: Array) -> tuple[Array, Array]:
        projection, offset = weights.apply(x), row_offset(weights)
        if not self.hyperbolic:
            return projection + offset, -half_square(x)
        offset = offset - 0.5 * jnp.log(2.0)
        return jnp.concatenate([projection + offset, offset - projection], axis=-1), -half_square(x)

    def query(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None = None
    ) -> Scaled:
        """exp(w·x − |x|²/2)."""
        values, scale = exponentials(*self._features(weights, x), scale)
        if self.hyperbolic and weights.signs is not None:
            return values * jnp.concatenate([weights.signs, weights.signs]), scale
        return signed(weights, values), scale

    def key(
        self, weights: Weights, y: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None = None
    ) -> Scaled:
        """exp(w·y − |y|²/2)."""
        return exponentials(*self._features(weights, y), scale)


@register
@dataclasses.dataclass(frozen=True)
class GERF(Component):
    """Generalised exponential features: A = a I with a learned below 1/8, starting at 0 (PosRF).

    Reference: Likhosherstov et al. 2022, "Chefs' random tables", section 3.1.
    """

    # a = (1 − e^t) / 8: below 1/8 for every t, and 0 at the start.
    t: Any  # ()

    trainable: ClassVar[tuple[str, ...]] = ("t",)

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "GERF":
        """a = 0."""
        del key, head_dim, num_rows
        return cls(jnp.zeros(()))

    @property
    def a(self) -> Array:
        """The learned a."""
        return (1 - jnp.exp(self.t)) / 8

    def query(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None = None
    ) -> Scaled:
        """D exp(a |w|² + sqrt(1 − 4a) w·x − |x|²/2)."""
        values, scale = exponentials(*_features(weights, x, self.a), scale)
        return signed(weights, values), scale

    def key(
        self, weights: Weights, y: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None = None
    ) -> Scaled:
        """The same of keys."""
        return exponentials(*_features(weights, y, self.a), scale)


class _Calibrated(Component):
    """Features of transformed queries and keys, with parameters from statistics."""

    a: Array
    calibrates: ClassVar[bool] = True

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "_Calibrated":
        """The best parameters if queries and keys were N(0, I)."""
        del key, num_rows
        return cls.from_moments(Moments.unit(head_dim))

    @classmethod
    def from_moments(cls, moments: Moments) -> "_Calibrated":
        """The best parameters for these statistics of one head."""
        raise NotImplementedError

    def calibrated(self, moments: Moments) -> "_Calibrated":
        """The best parameters for these statistics of one head, without gradients (those of eigh blow up)."""
        return jax.lax.stop_gradient(self.from_moments(jax.lax.stop_gradient(moments)))

    def _transform_query(self, x: Array) -> Array:
        return x

    def _transform_key(self, y: Array) -> Array:
        return y

    def query(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None = None
    ) -> Scaled:
        """D exp(w'Aw + w'(I − 4A)^½ x − |x|²/2) of the transformed x."""
        values, scale = exponentials(*_features(weights, self._transform_query(x), self.a), scale)
        return signed(weights, values), scale

    def key(
        self, weights: Weights, y: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None = None
    ) -> Scaled:
        """The same of the transformed y."""
        return exponentials(*_features(weights, self._transform_key(y), self.a), scale)


@register
@dataclasses.dataclass(frozen=True)
class OPRF(_Calibrated):
    """Optimal positive features (FAVOR#): A = a I with the best a for the mean of |x + y|².

    Reference: Likhosherstov et al. 2022, "Chefs' random tables", section 3.2.
    """

    a: Any  # ()

    @classmethod
    def from_moments(cls, moments: Moments) -> "OPRF":
        """a from E|x + y|² / H."""
        return cls(best_a(jnp.trace(sum_second(moments)) / moments.query_mean.shape[-1]))


@register
@dataclasses.dataclass(frozen=True)
class SDERF(_Calibrated):
    """Symmetric dense-exponential features: one a a direction, in the axes of E[(x + y)(x + y)'].

    Reference: Likhosherstov et al. 2023, "Dense-exponential random features", theorem 3.
    """

    a: Any  # (H,)
    rotation: Any  # (H, H)

    @classmethod
    def from_moments(cls, moments: Moments) -> "SDERF":
        """a of every eigenvalue, and the eigenvectors."""
        values, vectors = jnp.linalg.eigh(sum_second(moments))
        return cls(best_a(jnp.maximum(values, 0)), vectors)

    def _transform_query(self, x: Array) -> Array:
        return x @ self.rotation.astype(x.dtype)

    def _transform_key(self, y: Array) -> Array:
        return self._transform_query(y)


@register
@dataclasses.dataclass(frozen=True)
class ADERF(_Calibrated):
    """Asymmetric dense-exponential features: queries and keys are balanced by x -> Px, y -> P^-T y, then SDERF.

    Reference: Likhosherstov et al. 2023, "Dense-exponential random features", theorem 2.
    """

    a: Any  # (H,)
    query_map: Any  # (H, H)
    key_map: Any  # (H, H)

    @classmethod
    def from_moments(cls, moments: Moments) -> "ADERF":
        """P, then a and the axes of the balanced pair."""
        forward, backward = balancing_map(moments)
        balanced = moments._replace(
            query_mean=forward @ moments.query_mean,
            key_mean=backward @ moments.key_mean,
            query_second=forward @ moments.query_second @ forward.T,
            key_second=backward @ moments.key_second @ backward.T,
        )
        values, vectors = jnp.linalg.eigh(sum_second(balanced))
        return cls(best_a(jnp.maximum(values, 0)), forward.T @ vectors, backward.T @ vectors)

    def _transform_query(self, x: Array) -> Array:
        return x @ self.query_map.astype(x.dtype)

    def _transform_key(self, y: Array) -> Array:
        return y @ self.key_map.astype(y.dtype)


@register
@dataclasses.dataclass(frozen=True)
class SADERF(_Calibrated):
    """Simplified ADERF: queries and keys are balanced coordinate by coordinate, then OPRF; no matrix is needed.

    Reference: Likhosherstov et al. 2023, "Dense-exponential random features", section 3.5.
    """

    a: Any  # ()
    balance: Any  # (H,)

    @classmethod
    def from_moments(cls, moments: Moments) -> "SADERF":
        """The balance p, then a of the balanced pair."""
        p = balancing_scale(moments)
        balanced = moments._replace(
            query_mean=p * moments.query_mean,
            key_mean=moments.key_mean / p,
            query_second=moments.query_second * jnp.outer(p, p),
            key_second=moments.key_second / jnp.outer(p, p),
        )
        return cls(best_a(jnp.trace(sum_second(balanced)) / p.shape[-1]), p)

    def _transform_query(self, x: Array) -> Array:
        return x * self.balance.astype(x.dtype)

    def _transform_key(self, y: Array) -> Array:
        return y / self.balance.astype(y.dtype)
