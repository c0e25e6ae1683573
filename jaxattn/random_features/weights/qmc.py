"""Normal rows from low-discrepancy points of the unit cube."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.checks import check_choice
from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Rows
from jaxattn.random_features.weights.draws import check_sizes

# With 23 bits the middle of every cell of width 2^-23 is a float32, strictly between 0 and 1.
_BITS = 23


@functools.lru_cache(maxsize=32)
def _sobol_points(num_points: int, dim: int) -> np.ndarray:
    """The first points of the sequence as integers over 2^_BITS; their later bits are all 0."""
    from scipy.stats import qmc  # slow to import

    power = (num_points - 1).bit_length()
    points = qmc.Sobol(dim, scramble=False).random_base2(power)[:num_points]
    return np.round(points * 2**_BITS).astype(np.uint32)


def sobol(key: PRNGKeyArray, num_points: int, dim: int) -> Float[Array, "M H"]:
    """The first M Sobol points, each of them uniform in the open cube: random linear scramble, random shift.

    Every coordinate's bits are multiplied by a random lower unitriangular matrix over {0, 1} and its outcome
    added to random bits, which keeps the sequence's equidistribution (Matoušek 1998).
    """
    points = jnp.asarray(_sobol_points(num_points, dim))
    key_columns, key_shift = jax.random.split(key)
    power = (num_points - 1).bit_length()
    columns = jax.random.bits(key_columns, (power, 1, dim), jnp.uint32)
    scrambled = jax.random.bits(key_shift, (1, dim), jnp.uint32) >> (32 - _BITS)
    for i in range(power):
        top = np.uint32(1 << (_BITS - 1 - i))
        column = top | (columns[i] & (top - np.uint32(1)))
        scrambled = scrambled ^ jnp.where(points & top != 0, column, np.uint32(0))
    return (2 * scrambled + 1).astype(float) / 2 ** (_BITS + 1)


@functools.lru_cache(maxsize=32)
def _primes(count: int) -> tuple[int, ...]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % p for p in found if p * p <= candidate):
            found.append(candidate)
        candidate += 1
    return tuple(found)


def halton(key: PRNGKeyArray, num_points: int, dim: int) -> Float[Array, "M H"]:
    """The first M Halton points, each of them uniform in the open cube.

    The j-th coordinate is the radical inverse in the j-th prime. Every digit goes through a random permutation,
    without which coordinates of large primes are nearly equal; digits that M points do not reach are drawn
    independently.
    """
    bases = np.array(_primes(dim))
    key_rest, key_digits = jax.random.split(key)
    value, cell, level = jnp.zeros((num_points, dim)), np.ones(dim), 0
    while level == 0 or cell.max() * num_points > 1:
        # A point has this digit only in coordinates whose prime is small; they come first.
        used = dim if level == 0 else int((cell * num_points > 1).sum())
        base = bases[:used]
        digits = np.arange(num_points)[:, None] // base**level % base
        noise = jax.random.uniform(jax.random.fold_in(key_digits, level), (used, base[-1]))
        ranks = jnp.argsort(jnp.where(np.arange(base[-1]) < base[:, None], noise, jnp.inf))
        permuted = jnp.take_along_axis(ranks, jnp.asarray(digits.T), axis=1).T
        cell[:used] /= base
        value = value.at[:, :used].add(permuted * cell[:used])
        level += 1
    value += jax.random.uniform(key_rest, (num_points, dim)) * cell
    return jnp.clip(value, 2.0**-24, 1 - 2.0**-24)


SEQUENCES = {"sobol": sobol, "halton": halton}


@register
@dataclasses.dataclass(frozen=True)
class QMC(Rows):
    """w_m = Φ⁻¹(u_m), with u_1 … u_M a randomised low-discrepancy sequence in the unit cube.

    Every row is N(0, I) (to 23 bits), so what is unbiased with Gaussian rows stays unbiased; together the rows
    fill the space more evenly than independent ones. Take it for narrow heads and large M: at M of the order of H,
    only low-dimensional projections are even. Sobol is at its best where M is a power of two. O(M H).

    Attributes:
        sequence: "sobol" (random linear scramble and digital shift) or "halton" (random digit permutations).

    Examples:
        >>> import jax
        >>> from jaxattn.random_features.weights import QMC
        >>> w = QMC.create(jax.random.key(0), head_dim=8, num_rows=16).matrix()
        >>> (w > 0).sum(axis=0).tolist()  # exactly half of each coordinate
        [8, 8, 8, 8, 8, 8, 8, 8]

    Reference: Avron, Sindhwani, Yang & Mahoney 2016, "Quasi-Monte Carlo feature maps for shift-invariant
    kernels"; Matoušek 1998, "On the L2-discrepancy for anchored boxes".
    """

    sequence: str

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, sequence: str = "sobol") -> "QMC":
        """The first M points of the sequence, randomised by `key`."""
        check_sizes(head_dim, num_rows)
        check_choice("sequence", sequence, SEQUENCES)
        rows = jax.scipy.special.ndtri(SEQUENCES[sequence](key, num_rows, head_dim))
        return cls(head_dim, num_rows, rows, sequence)
