"""The interface of weight matrices: rows w_1 … w_M in R^H with mean 0 and covariance I, applied fast."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Weights(abc.ABC):
    """A weight matrix W of shape (M, H) as a pytree: only floating-point leaves, and sizes known at trace time.

    A subclass is a frozen dataclass under `register` that defines `create` and `apply`. Its array fields are
    annotated `Any` (transformations put placeholders there); its other fields are the options of `create`.

    Attributes:
        head_dim: H, the width of the vectors that W is applied to.
        num_rows: M, the number of rows.
        trainable: names of the fields that are learned; the others hold random numbers and are redrawn.
        is_quadrature: whether the rows are nodes of a rule for polynomials under N(0, I), instead of random draws
            that are unbiased for every function.
    """

    head_dim: int
    num_rows: int

    trainable: ClassVar[tuple[str, ...]] = ()
    is_quadrature: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *args: Any, **options: Any) -> "Weights":
        """Draws a weight matrix; the remaining arguments are the family's own."""

    @abc.abstractmethod
    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """W x, in float32 (float64 for float64 input), by the family's fast algorithm."""

    def resample(self, key: PRNGKeyArray) -> "Weights":
        """The same options and learned parameters with new random numbers; may run inside jit."""
        _, _, *own = dataclasses.fields(self)
        options = {field.name: getattr(self, field.name) for field in own if field.type is not Any}
        fresh = self.create(key, self.head_dim, self.num_rows, **options)
        return dataclasses.replace(fresh, **{name: getattr(self, name) for name in self.trainable})

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
        """w_m' diag(a) w_m of every row."""
        return precise_matmul(jnp.square(self.matrix()), diagonal)

    @property
    def sq_norms(self) -> Float[Array, " M"]:
        """|w_m|² of every row."""
        return jnp.square(self.matrix()).sum(axis=-1)


@dataclasses.dataclass(frozen=True)
class Dense(Weights):
    """Weights without structure, applied by one dense product with `matrix()`; a subclass defines `matrix`."""

    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """One dense product, O(M H)."""
        return apply_dense(self.matrix(), x)


@dataclasses.dataclass(frozen=True)
class Rows(Dense):
    """Dense weights stored as their rows."""

    rows: Any  # (M, H)

    def matrix(self) -> Float[Array, "M H"]:
        """The rows."""
        return self.rows


def apply_dense(rows: Float[Array, "M H"], x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
    """rows · x in float32 (float64 for float64 input)."""
    dtype = jnp.result_type(jnp.float32, x)
    return precise_matmul(x.astype(dtype), rows.T.astype(dtype))


def precise_matmul(x: Array, matrix: Array) -> Array:
    """x @ matrix for an exponential, whose relative error is the absolute error of this product.

    That is about 2^-17 |x| |matrix| on a TPU (three bfloat16 passes; one would give 2^-9), 2^-11 on a GPU with TF32,
    and what float32 gives on a CPU.
    """
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGH)
