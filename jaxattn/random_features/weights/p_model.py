"""Rows that recycle a small budget of random numbers: Toeplitz and low displacement rank."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.checks import check_choice
from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Weights, stacked
from jaxattn.random_features.weights.draws import check_count, check_sizes, num_blocks, rademacher, working


def _toeplitz(x: Float[Array, "... H"], t: Float[Array, "blocks rank L"]) -> Float[Array, "... H"]:
    """Σ_j t_(m − j + H − 1) x_j; L = 2 H − 1."""
    size = x.shape[-1]
    # A circular convolution of length 2 H wraps only outputs that are cut.
    spectrum = jnp.fft.rfft(x, 2 * size) * jnp.fft.rfft(t, 2 * size)
    return jnp.fft.irfft(spectrum, 2 * size)[..., size - 1 : 2 * size - 1]


@register
@dataclasses.dataclass(frozen=True)
class PModel(Weights):
    """Blocks of H rows that share few normal numbers, applied by FFT in O(M log H) (times the rank).

    "toeplitz": w_m = (g_(m − j + H − 1))_j with 2 H − 1 normal numbers g a block.
    "low_displacement_rank": Σ_i Z₁(g_i) Z₋₁(h_i) over i up to `rank`, Z_f(v) the f-circulant matrix with first
    column v, g_i ~ N(0, I), h_i random signs over sqrt(H rank); more rank, more randomness.

    Given h every row is normal; its covariance is I exactly for Toeplitz and on average over h for the other,
    so only Toeplitz keeps exactly unbiased what is unbiased with Gaussian rows. The variance of positive features
    is somewhat above that of independent rows: what is gained is speed.

    Attributes:
        structure: "toeplitz" or "low_displacement_rank".
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
        """Independent blocks one below the other, cut to M rows; `rank` is 2 where none is given."""
        check_sizes(head_dim, num_rows)
        check_choice("structure", structure, ("toeplitz", "low_displacement_rank"))
        blocks = num_blocks(num_rows, head_dim)
        if structure == "toeplitz":
            if rank is not None:
                raise ValueError(f"rank must be None for structure='toeplitz'; got {rank!r}.")
            return cls(
                head_dim, num_rows, structure, jax.random.normal(key, (blocks, 1, 2 * head_dim - 1)), None
            )
        rank = 2 if rank is None else rank
        check_count("rank", rank)
        key_left, key_right = jax.random.split(key)
        g = jax.random.normal(key_left, (blocks, rank, head_dim))
        h = rademacher(key_right, (blocks, rank, head_dim)) / (head_dim * rank) ** 0.5
        # Z_f(v) is Toeplitz: below the diagonal v, above it f times v once more.
        left = jnp.concatenate([g[..., 1:], g], axis=-1)
        right = jnp.concatenate([-h[..., 1:], h], axis=-1)
        return cls(head_dim, num_rows, structure, left, right)

    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """Convolutions by FFT, O(M log H) a rank."""
        x, diagonals = working(x, self.diagonals)
        y = x[..., None, None, :]
        if self.right is not None:
            y = _toeplitz(y, self.right.astype(x.dtype))
        return stacked(_toeplitz(y, diagonals).sum(axis=-2), self.num_rows)

    def resample(self, key: PRNGKeyArray) -> "PModel":
        """New numbers."""
        rank = None if self.right is None else self.right.shape[-2]
        return self.create(key, self.head_dim, self.num_rows, structure=self.structure, rank=rank)
