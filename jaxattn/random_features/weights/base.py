"""What every weight matrix is: rows w_1 … w_M in R^H with mean 0 and covariance I, applied fast."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Weights(abc.ABC):
    """A weight matrix W of shape (M, H) as a pytree: only floating-point leaves, and sizes known at trace time.

    A subclass is a frozen dataclass under `register`; its array fields are annotated `Any` (transformations
    put placeholders there).

    Attributes:
        head_dim: H, the width of the vectors that W is applied to.
        num_rows: M, the number of rows.
        trainable: names of the fields that are learned; the others hold random numbers and are redrawn.
    """

    head_dim: int
    num_rows: int

    trainable: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abc.abstractmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *args: Any, **options: Any) -> "Weights":
        """Draws a weight matrix; the remaining arguments are the family's own."""

    @abc.abstractmethod
    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """W x, in float32 (float64 for float64 input), by the family's fast algorithm."""

    def apply_plus(self, x: Float[Array, "*batch H"], offset: Float[Array, " M"]) -> Float[Array, "*batch M"]:
        """W x + offset; a family may have a faster way than one after the other."""
        return self.apply(x) + offset

    @abc.abstractmethod
    def resample(self, key: PRNGKeyArray) -> "Weights":
        """The same family and learned parameters with new random numbers; may run inside jit."""

    @property
    def log_weights(self) -> Float[Array, " M"] | None:
        """log of M times the quadrature weight of each row; None where all rows weigh the same.

        E f(w) is estimated by (1/M) Σ_m signs_m exp(log_weights_m) f(w_m).
        """
        return None

    @property
    def signs(self) -> Float[Array, " M"] | None:
        """The signs of the quadrature weights, 1 or −1; None where all are positive."""
        return None

    def matrix(self) -> Float[Array, "M H"]:
        """The dense W, for tests, inspection and statistics of the rows; never needed to apply it."""
        return self.apply(jnp.eye(self.head_dim)).T

    def quadratic(self, diagonal: Float[Array, " H"]) -> Float[Array, " M"]:
        """w_m' diag(a) w_m of every row, for a diagonal a."""
        return jnp.square(self.matrix()) @ diagonal

    @property
    def sq_norms(self) -> Float[Array, " M"]:
        """|w_m|² of every row."""
        return jnp.square(self.matrix()).sum(axis=-1)


def apply_dense(rows: Float[Array, "M H"], x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
    """rows · x in float32 (float64 for float64 input)."""
    dtype = jnp.result_type(jnp.float32, x)
    return x.astype(dtype) @ rows.T.astype(dtype)


def stacked(blocks: Float[Array, "*batch blocks size"], num_rows: int) -> Float[Array, "*batch M"]:
    """The outputs of square blocks one below the other, cut to M rows."""
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :num_rows]
