"""Evenly spread points on the sphere."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Dense
from jaxattn.random_features.weights.draws import check_sizes, haar, row_norms

_SWEEPS, _CANDIDATES = 2, 128


@functools.lru_cache(maxsize=64)
def _frequencies(count: int, length: int) -> np.ndarray:
    """`count` of the frequencies 1 … length − 1, chosen one at a time to lower the points' logarithmic energy.

    The points are invariant under k → k + 1, so the energy is a sum over their distances to the first one:
    −Σ_(k>0) log(1 − c_k) − Σ_k log(1 − s_k), with c_k and s_k the mean cosine and sine of 2πkλ/length over λ.
    """
    rng = np.random.default_rng(0)  # a fixed table; only rotation and norms are redrawn
    chosen = rng.permutation(np.arange(1, length))[:count]
    lags = np.arange(length)
    turns = np.exp(2j * np.pi * lags / length)
    total = turns[np.outer(lags, chosen) % length].sum(axis=1)
    for position in list(range(count)) * _SWEEPS:
        others = np.setdiff1d(np.arange(1, length), np.delete(chosen, position))
        trial = np.append(rng.permutation(others)[: _CANDIDATES - 1], chosen[position])
        total = total - turns[lags * chosen[position] % length]
        mean = (total + turns[np.outer(trial, lags) % length]) / count
        gaps = np.concatenate([1 - mean.real[:, 1:], 1 - mean.imag], axis=1)
        best = trial[np.argmin(-np.log(np.maximum(gaps, 1e-12)).sum(axis=1))]
        chosen[position] = best
        total = total + turns[lags * best % length]
    return np.sort(chosen)


@functools.lru_cache(maxsize=64)
def _points(num_rows: int, width: int) -> np.ndarray:
    """P of shape (M, d)."""
    planes = width // 2
    length = max(-(-num_rows // 2), planes + 1)
    turns = np.outer(np.arange(length), _frequencies(planes, length)) % length * (2 * np.pi / length)
    cos, sin = np.cos(turns), np.sin(turns)
    return np.block([[cos, sin], [-sin, cos]])[:num_rows] * planes**-0.5


@register
@dataclasses.dataclass(frozen=True)
class SSF(Dense):
    """W = diag(r) P R: P holds 2n points spread over the sphere, columns of a Fourier matrix; R a rotation.

    With d = 2 ceil(H/2) and frequencies λ_1 … λ_(d/2), point k of the first half is
    sqrt(2/d) (cos 2πkλ/n, sin 2πkλ/n), and of the second half that rotated by 90° in every plane. The
    frequencies are chosen once per (M, H) by coordinate descent on the logarithmic energy of the points. R is a
    uniform orthogonal d×d matrix cut to H columns and r_m ~ χ(d), so that every row is N(0, I) and what is
    unbiased with Gaussian rows stays unbiased; the published map has no rotation and takes evenly spaced
    quantiles for norms. n is ceil(M/2), at least d/2 + 1; where 2n exceeds M, only the first M points are taken.

    Take it where M is several times H. O(M H): one dense product, which up to M = 1,024 takes less time than R and
    the FFT of length n that the structure would allow.

    Attributes:
        norms: "chi" or "sqrt" (every r_m = sqrt(d)).
        rotation: R.
        radii: r.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import SSF
        >>> w = SSF.create(jax.random.key(0), head_dim=8, num_rows=32, norms="sqrt").matrix()
        >>> bool(abs(w.T @ w / 32 - jnp.eye(8)).max() < 1e-4)
        True

    Reference: Lyu 2017, "Spherical structured feature maps for kernel approximation".
    """

    norms: str
    rotation: Any  # (d, H)
    radii: Any  # (M,)

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, norms: str = "chi") -> "SSF":
        """Draws the rotation and the norms."""
        check_sizes(head_dim, num_rows)
        width = head_dim + head_dim % 2
        key_rotation, key_norms = jax.random.split(key)
        radii = row_norms(key_norms, norms, width, num_rows)
        return cls(head_dim, num_rows, norms, haar(key_rotation, width, 1)[0, :, :head_dim], radii)

    def matrix(self) -> Float[Array, "M H"]:
        """diag(r) P R."""
        points = jnp.asarray(_points(self.num_rows, self.rotation.shape[-2]), self.rotation.dtype)
        return self.radii[:, None] * jnp.matmul(points, self.rotation, precision=jax.lax.Precision.HIGHEST)

    @property
    def sq_norms(self) -> Float[Array, " M"]:
        """|w_m|²: what the dense rows have; r_m² where H is even."""
        return super().sq_norms if self.head_dim % 2 else jnp.square(self.radii)
