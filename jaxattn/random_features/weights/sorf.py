"""Structured orthogonal rows."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

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
class SORF(Weights):
    """Blocks sqrt(n) H D1 H D2 H D3: H the orthonormal Walsh–Hadamard matrix, D diagonal random signs.

    n is H rounded up to a power of two, and the padded columns are cut. E[w w'] = I exactly, but the rows take
    finitely many values: estimates that are unbiased with Gaussian rows get a small bias, which vanishes as H grows.
    Take it for wide heads: O(M log n) time and 3 signs a row.

    Attributes:
        num_products: the number of factors H D.
        flips: the signs.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import SORF
        >>> rows = SORF.create(jax.random.key(0), head_dim=8, num_rows=8).matrix()
        >>> bool(abs(rows @ rows.T - 8 * jnp.eye(8)).max() < 1e-4)
        True

    Reference: Yu, Suresh, Choromanski, Holtmann-Rice & Kumar 2016, "Orthogonal random features".
    """

    num_products: int
    flips: Any  # (blocks, products, n)

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, num_products: int = 3) -> "SORF":
        """Independent blocks of `num_products` factors H D each."""
        check_sizes(head_dim, num_rows)
        check_count("num_products", num_products)
        size = next_power_of_two(head_dim)
        flips = rademacher(key, (num_blocks(num_rows, size), num_products, size))
        return cls(head_dim, num_rows, num_products, flips)

    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """Fast Walsh–Hadamard transforms, O(M log n)."""
        x, flips = promote(x, self.flips)
        products, size = flips.shape[-2:]
        y = pad_last(x, size)[..., None, :]
        for i in reversed(range(products)):
            y = hadamard(flips[:, i] * y)
        # `hadamard` is sqrt(n) times orthonormal, and one factor sqrt(n) belongs to the matrix.
        return stack_blocks(y * size ** ((1 - products) / 2), self.num_rows)
