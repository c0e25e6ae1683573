"""Rows that recycle a small budget of random numbers: Toeplitz and low displacement rank."""

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
    promote,
    rademacher,
    stack_blocks,
)


def _toeplitz(x: Float[Array, "... H"], t: Float[Array, "blocks rank L"]) -> Float[Array, "... H"]:
    """Σ_j t_(m − j + H − 1) x_j; L = 2 H − 1."""
    size = x.shape[-1]
    # A circular convolution of length 2 H wraps only outputs that are cut.
    spectrum = jnp.fft.rfft(x, 2 * size) * jnp.fft.rfft(t, 2 * size)
    return jnp.fft.irfft(spectrum, 2 * size)[..., size - 1 : 2 * size - 1]


@register
@dataclasses.dataclass(frozen=True)
class PModel(Weights):
    """Blocks of H rows that share few normal numbers.

    "toeplitz": w_m = (g_(m − j + H − 1))_j with 2 H − 1 normal numbers g a block.
    "low_displacement_rank": Σ_i Z₁(g_i) Z₋₁(h_i) over i up to `rank`, Z_f(v) the f-circulant matrix with first
    column v, g_i ~ N(0, I), h_i random signs over sqrt(H rank); more rank, more randomness.

    Given h every row is normal; its covariance is I exactly for Toeplitz and on average over h for the other,
    so only Toeplitz keeps exactly unbiased what is unbiased with Gaussian rows. The variance of positive features
    is somewhat above that of independent rows. Take it for speed: O(M log H) by FFT, times the rank, and 2 numbers a
    row, likewise.

    Attributes:
        structure: "toeplitz" or "low_displacement_rank".
        rank: the number of products; None for Toeplitz.
        diagonals: the diagonals of the Toeplitz block, or of every Z₁(g_i).
        right: the diagonals of every Z₋₁(h_i); None for Toeplitz.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import PModel
        >>> w = PModel.create(jax.random.key(0), head_dim=3, num_rows=3).matrix()
        >>> bool(jnp.allclose(w[1:, 1:], w[:-1, :-1], atol=1e-5))
        True

    Reference: Choromanski & Sindhwani 2016, "Recycling randomness with structure for sublinear time kernel
    expansions".
    """

    structure: str
    rank: int | None
    diagonals: Any  # (blocks, 1 or rank, 2 H - 1)
    right: Any  # (blocks, rank, 2 H - 1) or None

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        head_dim: int,
        num_rows: int,
        *,
        structure: str = "toeplitz",
        rank: int | None = None,
    ) -> "PModel":
        """Independent blocks stacked, cut to M rows; `rank` is 2 when None, and must be None for Toeplitz."""
        check_sizes(head_dim, num_rows)
        check_choice("structure", structure, ("toeplitz", "low_displacement_rank"))
        blocks = num_blocks(num_rows, head_dim)
        if structure == "toeplitz":
            if rank is not None:
                raise ValueError(f"rank must be None for structure='toeplitz'; got {rank!r}.")
            diagonals = jax.random.normal(key, (blocks, 1, 2 * head_dim - 1))
            return cls(head_dim, num_rows, structure, rank, diagonals, None)
        rank = 2 if rank is None else rank
        check_count("rank", rank)
        key_left, key_right = jax.random.split(key)
        g = jax.random.normal(key_left, (blocks, rank, head_dim))
        h = rademacher(key_right, (blocks, rank, head_dim)) / (head_dim * rank) ** 0.5
        # Z_f(v) is Toeplitz: v on and below the diagonal, f times v above.
        left = jnp.concatenate([g[..., 1:], g], axis=-1)
        right = jnp.concatenate([-h[..., 1:], h], axis=-1)
        return cls(head_dim, num_rows, structure, rank, left, right)

    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """Convolutions by FFT, O(M log H) times the rank."""
        x, diagonals = promote(x, self.diagonals)
        y = x[..., None, None, :]
        if self.right is not None:
            y = _toeplitz(y, self.right.astype(x.dtype))
        return stack_blocks(_toeplitz(y, diagonals).sum(axis=-2), self.num_rows)
