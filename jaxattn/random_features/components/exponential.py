"""Positive features exp(w'Aw + w'Bx + x'Cx): PosRF, GERF, OPRF, SDERF, ADERF, SADERF."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.components.base import Component, Scaled, exponentials, half_square, row_offset
from jaxattn.random_features.moments import Moments, balancing_map, balancing_scale, best_a, sum_second
from jaxattn.random_features.weights.base import Weights, precise_matmul


class _Exponential(Component):
    """e to an affine function of x, minus |x|²/2."""

    takes_quadrature: ClassVar[bool] = True
    kind: ClassVar[str | None] = "exponential"

    def affine(self, weights: Weights, x: Float[Array, "*batch H"]) -> tuple[Array, Array]:
        """The linear part of the logarithms, and the constant one."""
        raise NotImplementedError

    def features(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None
    ) -> Scaled:
        """exp(affine(x) − |x|²/2)."""
        products, offset = self.affine(weights, x)
        return exponentials(products + offset, -half_square(x), scale)


@register
@dataclasses.dataclass(frozen=True)
class PosRF(_Exponential):
    """Positive random features (FAVOR+): f(w, x) = exp(w·x − |x|²/2), with E[f(w, x) f(w, y)] = exp(x·y).

    The relative variance is (exp(|x + y|²) − 1) / M with independent rows: small only for small queries and keys.
    Take it where nothing may depend on data; calibrated, `oprf` has less variance. O(M H) a token with dense weights.

    Attributes:
        hyperbolic: whether every row is used twice, as w and as −w: half as many rows for the same number of
            features, and a variance no larger.

    Reference: Choromanski et al. 2021, "Rethinking attention with Performers", lemma 1 and equation 6.
    """

    hyperbolic: bool = False

    @classmethod
    def rows_for(cls, num_features: int, **options: Any) -> int:
        """Half as many rows if every row is used twice."""
        return max(1, num_features // 2) if options.get("hyperbolic") else num_features

    def affine(self, weights: Weights, x: Float[Array, "*batch H"]) -> tuple[Array, Array]:
        """w·x, and −w·x if hyperbolic."""
        products, offset = weights.apply(x), row_offset(weights)
        if not self.hyperbolic:
            return products, offset
        offset -= 0.5 * jnp.log(2.0)
        return jnp.concatenate([products, -products], axis=-1), jnp.tile(offset, 2) if offset.ndim else offset


class _Tilted(_Exponential):
    """D exp(w'Aw + w'Bx − |x|²/2) with A = diag(a) or a I, every a below 1/8.

    B = (I − 4A)^½ and D = det(I − 4A)^¼, so that the mean of a product over w ~ N(0, I) is exp(x·y).

    In that mean exp(w'Aw)² turns the density of w into that of N(0, (I − 4A)^-1). Random rows follow by their spread,
    but the nodes u of a quadrature rule for N(0, I) do not: the rule integrates exp(2 w'Aw) badly. It has to be
    applied at w = (I − 4A)^-½ u with each weight times N(w; 0, I) / N(w; 0, (I − 4A)^-1). Half of that factor in
    each feature cancels D and w'Aw, so the features of queries and keys are exp(u·x − |x|²/2): those of PosRF on the
    transformed x.
    """

    a: Array

    def affine(self, weights: Weights, x: Float[Array, "*batch H"]) -> tuple[Array, Array]:
        """w'Bx, and w'Aw + log D."""
        if weights.is_quadrature:
            return weights.apply(x), row_offset(weights)
        diagonal = jnp.broadcast_to(self.a, x.shape[-1:]).astype(x.dtype)
        offset = weights.quadratic(diagonal) + 0.25 * jnp.log1p(-4 * diagonal).sum() + row_offset(weights)
        return weights.apply(jnp.sqrt(1 - 4 * diagonal) * x), offset


@register
@dataclasses.dataclass(frozen=True)
class GERF(_Tilted):
    """Generalised exponential features: f(w, x) = D exp(a |w|² + (1 − 4a)^½ w·x − |x|²/2), D = (1 − 4a)^(H/4).

    E[f(w, x) f(w, y)] = exp(x·y) for every a below 1/8. a is learned by gradient and starts at 0, where it is PosRF.
    Take it where statistics are not wanted; `oprf` has the best a in closed form. O(M H) a token with dense weights.

    Reference: Likhosherstov et al. 2022, "Chefs' random tables", section 3.1.
    """

    t: Any  # ()

    trainable: ClassVar[tuple[str, ...]] = ("t",)

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "GERF":
        """a = 0."""
        del key, head_dim, num_rows
        return cls(jnp.zeros(()))

    @property
    def a(self) -> Array:  # type: ignore[override]
        """(1 − e^t) / 8: below 1/8 for every t, and 0 for t = 0."""
        return (1 - jnp.exp(self.t)) / 8


class _Calibrated(_Tilted):
    """Tilted features of transformed queries and keys, with parameters from statistics."""

    calibrates: ClassVar[bool] = True

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "_Calibrated":
        """The parameters that need no statistics: those of `PosRF`."""
        del key, num_rows
        return cls.from_moments(cls.prior(head_dim))

    @classmethod
    def prior(cls, head_dim: int) -> Moments:
        """Zeros, which make a = 0. N(0, I) would be a bad guess, even where it is right: its a errs more than 0."""
        return jax.tree.map(jnp.zeros_like, Moments.unit(head_dim))

    @classmethod
    def from_moments(cls, moments: Moments) -> "_Calibrated":
        """The best parameters for these statistics of one head."""
        raise NotImplementedError

    def calibrated(self, moments: Moments) -> "_Calibrated":
        """The best parameters for these statistics of one head, without gradients (those of eigh are unstable)."""
        return jax.lax.stop_gradient(self.from_moments(jax.lax.stop_gradient(moments)))


@register
@dataclasses.dataclass(frozen=True)
class OPRF(_Calibrated):
    """Optimal positive features (FAVOR#): GERF with the a of least variance for the mean of |x + y|².

    E[f(w, x) f(w, y)] = exp(x·y). The default: one statistic a head, and an order of magnitude less variance than
    PosRF where |x + y|² is a few units. O(M H) a token with dense weights.

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
    """Symmetric dense-exponential features: OPRF with one a for each axis Q of E[(x + y)(x + y)'].

    f(w, x) = D exp(w'Aw + w'(I − 4A)^½ Q'x − |x|²/2) with A = diag(a), and E[f(w, x) f(w, y)] = exp(x·y). Take it
    where a few directions of x + y hold most of the variance. O(M H + H²) a token.

    Reference: Likhosherstov et al. 2023, "Dense-exponential random features", theorem 3.
    """

    decomposes: ClassVar[bool] = True

    a: Any  # (H,)
    rotation: Any  # (H, H)

    @classmethod
    def from_moments(cls, moments: Moments) -> "SDERF":
        """a of every eigenvalue, and the eigenvectors."""
        values, vectors = jnp.linalg.eigh(sum_second(moments))
        return cls(best_a(jnp.maximum(values, 0)), vectors)

    def transform_query(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """Q'x."""
        return precise_matmul(x, self.rotation.astype(x.dtype))

    def transform_key(self, y: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """Q'y."""
        return self.transform_query(y)


@register
@dataclasses.dataclass(frozen=True)
class ADERF(_Calibrated):
    """Asymmetric dense-exponential features: queries and keys are balanced by x -> Px, y -> P^-T y, then SDERF.

    x·y = Px·P^-T y, so E[φ_q(x) φ_k(y)] = exp(x·y) for every P; this one gives Px and P^-T y the same second moments.
    The least variance of all where queries and keys differ in scale by direction. O(M H + H²) a token.

    Reference: Likhosherstov et al. 2023, "Dense-exponential random features", theorem 2.
    """

    decomposes: ClassVar[bool] = True

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

    def transform_query(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """Q'Px."""
        return precise_matmul(x, self.query_map.astype(x.dtype))

    def transform_key(self, y: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """Q'P^-T y."""
        return precise_matmul(y, self.key_map.astype(y.dtype))


@register
@dataclasses.dataclass(frozen=True)
class SADERF(_Calibrated):
    """Simplified ADERF: queries and keys are balanced coordinate by coordinate, x -> p x, y -> y / p, then OPRF.

    E[φ_q(x) φ_k(y)] = exp(x·y) for every p. Take it where coordinates of queries and keys differ in scale: it costs
    what OPRF costs, without H×H matrices and eigenvectors. O(M H) a token with dense weights.

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

    def transform_query(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """p x."""
        return x * self.balance.astype(x.dtype)

    def transform_key(self, y: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """y / p."""
        return y / self.balance.astype(y.dtype)
