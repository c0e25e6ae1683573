"""The interface of component functions: a pair of feature functions whose products estimate exp(x·y)."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.random_features.moments import Moments
from jaxattn.random_features.weights.base import Weights

# Features of magnitude about 1 at most, (…, M), and their log scale, (…): φ = values · e^scale.
Scaled = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Component(abc.ABC):
    """A component function of one head, as a pytree of floating-point arrays.

    φ_q(x)·φ_k(y), averaged over the draws of the weights, is exp(x·y) if the rows of the weights are N(0, I). A
    subclass is a frozen dataclass under `register` that defines `create` and `features`; where queries and keys are
    transformed first, also `transform_query` and `transform_key`.

    Attributes:
        features_per_row: features made from one row of the weights, with the default options.
        takes_quadrature: whether nodes of a quadrature rule for polynomials may stand in for random rows.
        positive: whether the features, and so the attention weights, are positive for every input.
        calibrates: whether the best parameters depend on statistics of queries and keys.
        decomposes: whether finding them takes eigendecompositions.
        trainable: names of the fields that are learned.
        random: names of the fields that are random numbers, redrawn with the weights.
        kind: of the features, as `jaxattn.linear.Kind` names it, where `affine` says what they are made from.
    """

    features_per_row: ClassVar[int] = 1
    takes_quadrature: ClassVar[bool] = False
    positive: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    decomposes: ClassVar[bool] = False
    trainable: ClassVar[tuple[str, ...]] = ()
    random: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str | None] = None

    @classmethod
    def create(
        cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *args: Any, **options: Any
    ) -> "Component":
        """The component before it has seen data; `options` are its own."""
        del key, head_dim, num_rows
        return cls(*args, **options)

    @classmethod
    def rows_for(cls, num_features: int, **options: Any) -> int:
        """How many rows of weights give at most `num_features` features (one row at least)."""
        del options
        return max(1, num_features // cls.features_per_row)

    @abc.abstractmethod
    def features(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None
    ) -> Scaled:
        """The features of transformed queries or keys but for the signs of the rows, one block of M after another."""

    def affine(self, weights: Weights, x: Float[Array, "*batch H"]) -> tuple[Array, Array] | None:
        """The products (…, M) with the weights that the features are a function of, and a constant () or (M,).

        Of a component whose features are those of a `jaxattn.linear.Kind`, `kind`, of transformed x; else None.
        """
        del weights, x
        return None

    def transform_query(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """What the features of a query are computed from."""
        return x

    def transform_key(self, y: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """What the features of a key are computed from."""
        return y

    def query(
        self, weights: Weights, x: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None = None
    ) -> Scaled:
        """φ_q: values (…, features) and log scale (…) of queries, which include the root of the attention scale.

        `scale` is the log scale that an earlier call with the same arguments returned, to save the search for it.
        """
        values, scale = self.features(weights, self.transform_query(x), scale)
        if weights.signs is None:
            return values, scale
        return values * jnp.tile(weights.signs, values.shape[-1] // weights.num_rows), scale

    def key(
        self, weights: Weights, y: Float[Array, "*batch H"], scale: Float[Array, "*batch"] | None = None
    ) -> Scaled:
        """φ_k: the same of keys; the signs of the rows are in φ_q alone."""
        return self.features(weights, self.transform_key(y), scale)

    @classmethod
    def prior(cls, head_dim: int) -> Moments:
        """The statistics that are assumed before any data were seen."""
        return Moments.unit(head_dim)

    def calibrated(self, moments: Moments) -> "Component":
        """The component with the best parameters for these statistics of one head, without gradients."""
        del moments
        return self

    def resample(self, key: PRNGKeyArray) -> "Component":
        """The component with new random numbers."""
        del key
        return self


def row_offset(weights: Weights) -> Array:
    """(M,) or (): added to every log feature, so that a product of two sums to the weighted mean over rows."""
    offset = -0.5 * jnp.log(float(weights.num_rows))
    return offset if weights.log_weights is None else offset + 0.5 * weights.log_weights


def exponentials(
    logarithms: Float[Array, "*batch M"],
    common: Float[Array, "*batch"],
    scale: Float[Array, "*batch"] | None,
) -> Scaled:
    """e^(logarithms + common) as values up to 1 and a log scale, which is the largest logarithm unless given."""
    # A shift between values and scale changes nothing, so it has no gradient.
    top = jax.lax.stop_gradient(logarithms.max(axis=-1) if scale is None else scale - common)
    return jnp.exp(logarithms - top[..., None]), top + common


def half_square(x: Float[Array, "*batch H"]) -> Float[Array, "*batch"]:
    """|x|² / 2."""
    return 0.5 * jnp.square(x).sum(axis=-1)
