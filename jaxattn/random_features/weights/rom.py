"""Random orthogonal rows from products of Hadamard matrices and diagonals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.checks import check_choice
from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Weights
from jaxattn.random_features.weights.draws import (
    check_count,
    check_sizes,
    num_blocks,
    pad_last,
    promote,
    rademacher,
    stack_blocks,
)
from jaxattn.random_features.weights.hadamard import hadamard, next_power_of_two


@register
@dataclasses.dataclass(frozen=True)
class ROM(Weights):
    """Blocks sqrt(n) S D1 … S Dk, S the orthonormal Hadamard matrix, in one of two kinds.

    "rademacher" (S-Rademacher): every D holds signs; with k = 3 this is SORF.
    "hybrid" (S-hybrid): Dk, which multiplies x, holds uniform phases e^{iθ}. The product is then unitary, and
    sqrt(2) times its real and its imaginary parts are 2n real rows with (1/2n) Σ w w' = I exactly; the real
    parts come first, so M ≤ n rows have the covariance in expectation only.

    n is H rounded up to a power of two. As with SORF the rows are only close to normal, and the bias vanishes as H
    grows. O(M log n) time, k numbers a row.

    Attributes:
        kind: "hybrid" or "rademacher".
        num_products: k.
        first: the diagonal that multiplies x: one of signs, or two of sqrt(2) cos θ and sqrt(2) sin θ.
        flips: the signs of the others.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import ROM
        >>> rows = ROM.create(jax.random.key(0), head_dim=8, num_rows=16).matrix()
        >>> bool(abs(rows.T @ rows / 16 - jnp.eye(8)).max() < 1e-5)
        True

    Reference: Choromanski, Rowland & Weller 2017, "The unreasonable effectiveness of structured random
    orthogonal embeddings".
    """

    kind: str
    num_products: int
    first: Any  # (blocks, 1 or 2, n)
    flips: Any  # (blocks, products - 1, n)

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        head_dim: int,
        num_rows: int,
        *,
        kind: str = "hybrid",
        num_products: int = 3,
    ) -> "ROM":
        """Independent blocks of `num_products` factors S D each."""
        check_sizes(head_dim, num_rows)
        check_choice("kind", kind, ("hybrid", "rademacher"))
        check_count("num_products", num_products)
        size = next_power_of_two(head_dim)
        key_first, key_flips = jax.random.split(key)
        blocks = num_blocks(num_rows, 2 * size if kind == "hybrid" else size)
        if kind == "hybrid":
            angle = jax.random.uniform(key_first, (blocks, size), maxval=2 * jnp.pi)
            first = 2**0.5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        else:
            first = rademacher(key_first, (blocks, 1, size))
        flips = rademacher(key_flips, (blocks, num_products - 1, size))
        return cls(head_dim, num_rows, kind, num_products, first, flips)

    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """Fast Walsh–Hadamard transforms, O(M log n)."""
        x, first, flips = promote(x, self.first, self.flips)
        blocks, parts, size = first.shape
        y = hadamard(first * pad_last(x, size)[..., None, None, :])
        for i in range(flips.shape[-2]):
            y = hadamard(flips[:, i, None] * y)
        y = y * size ** (-flips.shape[-2] / 2)
        return stack_blocks(y.reshape(*x.shape[:-1], blocks, parts * size), self.num_rows)
