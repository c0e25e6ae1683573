"""Fastfood: a Gaussian matrix imitated by Hadamard matrices, diagonals and a permutation."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Weights
from jaxattn.random_features.weights.draws import (
    check_sizes,
    chi,
    num_blocks,
    pad_last,
    promote,
    rademacher,
    stack_blocks,
)
from jaxattn.random_features.weights.hadamard import hadamard, next_power_of_two


@register
@dataclasses.dataclass(frozen=True)
class Fastfood(Weights):
    """Blocks n^(-1/2) S H G Π H B: H Walsh–Hadamard of ±1, B signs, Π a permutation, G normal, S the row norms.

    S_m = r_m / |G| with r_m ~ χ(n) gives the rows the norms of normal ones; n is H rounded up to a power of two, and
    the padded columns are cut. Rows of one block share G, so they are neither orthogonal nor independent: the
    variance of positive features is above that of ORF, and somewhat above that of independent rows. Take it for wide
    heads: O(M log n) time, 4 numbers a row.

    Attributes:
        scale: the diagonal of S.
        gaussian: the diagonal of G.
        flips: the diagonal of B.
        permutation: Π as indices, stored as floats because every leaf of a weight matrix is one.

    Examples:
        >>> import jax
        >>> from jaxattn.random_features.weights import Fastfood
        >>> weights = Fastfood.create(jax.random.key(0), head_dim=64, num_rows=64)
        >>> sum(leaf.size for leaf in jax.tree.leaves(weights)), weights.matrix().size
        (256, 4096)

    Reference: Le, Sarlós & Smola 2013, "Fastfood: approximating kernel expansions in loglinear time".
    """

    scale: Any  # (blocks, n)
    gaussian: Any  # (blocks, n)
    flips: Any  # (blocks, n)
    permutation: Any  # (blocks, n)

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int) -> "Fastfood":
        """Independent blocks stacked, cut to M rows."""
        check_sizes(head_dim, num_rows)
        size = next_power_of_two(head_dim)
        shape = (num_blocks(num_rows, size), size)
        keys = jax.random.split(key, 4)
        gaussian = jax.random.normal(keys[0], shape)
        scale = chi(keys[1], size, shape) / jnp.linalg.norm(gaussian, axis=-1, keepdims=True)
        permutation = jnp.argsort(jax.random.uniform(keys[3], shape)).astype(gaussian.dtype)
        return cls(head_dim, num_rows, scale, gaussian, rademacher(keys[2], shape), permutation)

    def apply(self, x: Float[Array, "*batch H"]) -> Float[Array, "*batch M"]:
        """Two fast Walsh–Hadamard transforms, O(M log n)."""
        x, scale, gaussian, flips = promote(x, self.scale, self.gaussian, self.flips)
        size = flips.shape[-1]
        y = hadamard(flips * pad_last(x, size)[..., None, :])
        permute = jax.vmap(lambda v, index: v[..., index], in_axes=(-2, 0), out_axes=-2)
        y = hadamard(gaussian * permute(y, self.permutation.astype(jnp.int32)))
        return stack_blocks(scale * y * size**-0.5, self.num_rows)


@register
@dataclasses.dataclass(frozen=True)
class FastfoodLearnable(Fastfood):
    """Fastfood with S, G and B learned, from the same start; the permutations stay as drawn.

    3 numbers a row are trained instead of H. Trained, the features estimate a learned kernel instead of exp(x·y).

    Examples:
        >>> import jax
        >>> from jaxattn.random_features.weights import FastfoodLearnable
        >>> FastfoodLearnable.create(jax.random.key(0), head_dim=8, num_rows=12).trainable
        ('scale', 'gaussian', 'flips')

    Reference: Yang et al. 2015, "Deep fried convnets"; for attention features Pal Chowdhury, Solomou, Dubey &
    Sachan 2022, "Learning the transformer kernel".
    """

    trainable: ClassVar[tuple[str, ...]] = ("scale", "gaussian", "flips")

    def resample(self, key: PRNGKeyArray) -> "FastfoodLearnable":
        """Itself: the diagonals were learned for these permutations, so nothing is left to redraw."""
        return self
