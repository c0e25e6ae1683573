"""Discrete random features: powers of the coordinates with random exponents (PoisRF, GeomRF)."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, ndtr
from jax.scipy.stats import poisson
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.components.base import Component, Scaled, exponentials, half_square, row_offset
from jaxattn.random_features.moments import Moments
from jaxattn.random_features.weights.base import Weights, precise_matmul

_TINY = 1e-30  # in place of |x_l| = 0, whose logarithm would be −inf


class _Discrete(Component):
    """f(w, x) = Π_l x_l^{n_l} / sqrt(n_l! P(n_l)) with counts n_l ~ P, so that E[f(w, x) f(w, y)] = exp(x·y).

    The counts are quantiles of the weights' coordinates, n = P^-1(Φ(w)): exactly P for normal coordinates, and any
    weight matrix will do. They are discrete, so learned weights get no gradient from these features.

    With `positive` both sides are shifted by the smallest coordinate c of the calibration data: exp(x·y) is a
    function of x − y but for factors of x alone and of y alone, so shifting is exact, and powers of positive numbers
    are positive. Data below c make features of either sign; the estimate stays unbiased.
    """

    positive_option: bool
    shift: Array
    calibrates: ClassVar[bool] = True
    positive: ClassVar[bool] = False

    @classmethod
    def create(
        cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, positive: bool = False
    ) -> "_Discrete":
        """The best parameter if queries and keys were N(0, I); `positive` chooses the shifted form."""
        del key, num_rows
        return cls.from_moments(cls.prior(head_dim), positive)

    @classmethod
    def from_moments(cls, moments: Moments, positive: bool) -> "_Discrete":
        """The best parameter for these statistics of one head."""
        # A little below the minimum, so that no coordinate of the calibration data becomes 0.
        low = moments.minimum - 1e-2 * jnp.abs(moments.minimum)
        shift = low if positive else jnp.zeros_like(low)

        def shifted_second(mean: Array, second: Array) -> Array:
            return jnp.diagonal(second) - 2 * shift * mean + shift**2

        x = shifted_second(moments.query_mean, moments.query_second)
        y = shifted_second(moments.key_mean, moments.key_second)
        parameter = cls.best(jnp.sqrt(jnp.maximum(x * y, 1e-12)))
        return cls(positive, parameter, shift)  # type: ignore[call-arg]

    def calibrated(self, moments: Moments) -> "_Discrete":
        """The best parameter for these statistics of one head, without gradients."""
        return jax.lax.stop_gradient(self.from_moments(jax.lax.stop_gradient(moments), self.positive_option))

    @staticmethod
    @abc.abstractmethod
    def best(products: Float[Array, " H"]) -> Array:
        """The parameter of least variance for typical |x_l y_l| = `products`."""

    @abc.abstractmethod
    def counts(self, uniform: Array) -> Array:
        """The quantile function of P."""

    @abc.abstractmethod
    def log_probability(self, counts: Array) -> Array:
        """log P(n)."""

    def features(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None
    ) -> Scaled:
        """Π_l x_l^{n_l} / sqrt(n_l! P(n_l)), of the shifted x if positive."""
        # Away from 0 and 1, where float32 quantiles end.
        uniform = jnp.clip(ndtr(weights.matrix()), 1e-7, 1 - 1e-7)
        counts = jax.lax.stop_gradient(self.counts(uniform)).astype(x.dtype)
        offset = -0.5 * (gammaln(counts + 1) + self.log_probability(counts)).sum(axis=-1) + row_offset(
            weights
        )
        shifted = x - self.shift.astype(x.dtype)
        logarithms = precise_matmul(jnp.log(jnp.maximum(jnp.abs(shifted), _TINY)), counts.T)
        logarithms += offset.astype(x.dtype)
        odd = jnp.mod((shifted < 0).astype(x.dtype) @ counts.T, 2.0)
        common = jnp.zeros(x.shape[:-1], x.dtype)
        if self.positive_option:
            common = half_square(x) - half_square(shifted)
        values, scale = exponentials(logarithms, common, scale)
        return values * (1 - 2 * odd), scale


@register
@dataclasses.dataclass(frozen=True)
class PoisRF(_Discrete):
    """Poisson features: f(w, x) = Π_l x_l^{n_l} e^{λ/2} λ^{-n_l/2} with counts n_l of rate λ, quantiles of w_l.

    E[f(w, x) f(w, y)] = exp(x·y). E[f(x)² f(y)²] = Π_l exp(λ + x_l² y_l² / λ), so the best λ is the root mean square
    over coordinates of sqrt(E[x_l²] E[y_l²]). Not positive without the option `positive`. For small queries and keys
    only. O(M H) a token, twice that of PosRF, and dense whatever the weights.

    Reference: Likhosherstov et al. 2022, "Chefs' random tables", section 3.3 (PoisRF, and PoisRF+ for `positive`).
    """

    positive_option: bool
    rate: Any  # ()
    shift: Any  # (H,)

    @staticmethod
    def best(products: Float[Array, " H"]) -> Array:
        """The root mean square."""
        return jnp.sqrt(jnp.mean(products**2))

    def counts(self, uniform: Array) -> Array:
        """The number of n whose cumulative probability is below u; rates are far below 100."""

        def add(n: Array, counts: Array) -> Array:
            return counts + (poisson.cdf(n, self.rate) < uniform)

        return jax.lax.fori_loop(0, 100, add, jnp.zeros_like(uniform))

    def log_probability(self, counts: Array) -> Array:
        """n log λ − λ − log n!."""
        return counts * jnp.log(self.rate) - self.rate - gammaln(counts + 1)


@register
@dataclasses.dataclass(frozen=True)
class GeomRF(_Discrete):
    """Geometric features: f(w, x) = Π_l x_l^{n_l} / sqrt(n_l! p (1 − p)^{n_l}), n_l geometric quantiles of w_l.

    E[f(w, x) f(w, y)] = exp(x·y). E[f(x)² f(y)²] = Π_l p^-1 I_0(2 |x_l y_l| (1 − p)^-½); the best p is searched on a
    grid. Not positive without the option `positive`. For small queries and keys only. O(M H) a token, twice that of
    PosRF, and dense whatever the weights.

    Reference: Likhosherstov et al. 2022, "Chefs' random tables", section 3.3 (GeomRF, and GeomRF+ for `positive`).
    """

    positive_option: bool
    probability: Any  # ()
    shift: Any  # (H,)

    @staticmethod
    def best(products: Float[Array, " H"]) -> Array:
        """The best p of a grid."""
        grid = jnp.linspace(0.01, 0.99, 99)
        argument = 2 * products / jnp.sqrt(1 - grid[:, None])
        log_bessel = argument + jnp.log(jax.scipy.special.i0e(argument))
        return grid[jnp.argmin((log_bessel - jnp.log(grid[:, None])).sum(axis=-1))]

    def counts(self, uniform: Array) -> Array:
        """⌊log(1 − u) / log(1 − p)⌋."""
        return jnp.floor(jnp.log1p(-uniform) / jnp.log1p(-self.probability))

    def log_probability(self, counts: Array) -> Array:
        """log p + n log(1 − p)."""
        return jnp.log(self.probability) + counts * jnp.log1p(-self.probability)
