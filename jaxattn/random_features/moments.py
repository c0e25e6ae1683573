"""Statistics of queries and keys, and the best parameters of component functions for them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxattn.core.pytree import serializable


@serializable
class Moments(NamedTuple):
    """Of scaled queries x and keys y, a row each key/value head: means over batch and unmasked positions.

    Attributes:
        query_mean: (K, H) E[x]; key_mean: (K, H) E[y].
        query_second: (K, H, H) E[xx']; key_second: (K, H, H) E[yy'].
        minimum: (K, H) the smallest coordinate met, of queries and keys.
    """

    query_mean: Any
    key_mean: Any
    query_second: Any
    key_second: Any
    minimum: Any

    @classmethod
    def unit(cls, head_dim: int) -> "Moments":
        """Of one head whose unscaled queries and keys are N(0, I), with 1/sqrt(H) as scale. The minimum is the
        value that one coordinate in 10,000 is below."""
        variance = head_dim**-0.5
        zero, second = jnp.zeros(head_dim), jnp.eye(head_dim) * variance
        return cls(zero, zero, second, second, jnp.full(head_dim, -3.7 * variance**0.5))

    @classmethod
    def of(
        cls,
        x: Float[Array, "B T N H"],
        y: Float[Array, "B S K H"],
        query_mask: Bool[Array, "B T"] | None = None,
        key_mask: Bool[Array, "B S"] | None = None,
        axis_name: str | None = None,
    ) -> "Moments":
        """Moments of scaled queries and keys; the N / K query heads that share a key head are pooled."""
        heads = y.shape[2]
        x = x.reshape(*x.shape[:2], heads, x.shape[2] // heads, x.shape[-1]).astype(jnp.float32)
        y = y[:, :, :, None].astype(jnp.float32)
        query_mean, query_second, query_low = _moments(x, query_mask, axis_name)
        key_mean, key_second, key_low = _moments(y, key_mask, axis_name)
        return cls(query_mean, key_mean, query_second, key_second, jnp.minimum(query_low, key_low))


def _moments(x: Array, mask: Array | None, axis_name: str | None) -> tuple[Array, Array, Array]:
    """Mean (K, H), second moment (K, H, H) and minimum (K, H) of x (B, T, K, G, H)."""
    groups = x.shape[3]
    if mask is None:
        count, low = jnp.asarray(x.shape[0] * x.shape[1]), x
    else:
        kept = mask[:, :, None, None, None]
        count, low = mask.sum(), jnp.where(kept, x, jnp.inf)
        x = jnp.where(kept, x, 0)
    total = x.sum(axis=(0, 1, 3)), jnp.einsum("btkgh,btkgi->khi", x, x)
    low = low.min(axis=(0, 1, 3), initial=jnp.inf)
    if axis_name is not None:
        count, total = lax.psum((count, total), axis_name)
        low = lax.pmin(low, axis_name)
    # Of padding alone, nothing is learned: the moments are 0.
    mean, second = (x / (jnp.maximum(count, 1) * groups) for x in total)
    return mean, second, jnp.where(jnp.isfinite(low), low, 0)


def best_a(spread: Float[Array, "*H"]) -> Float[Array, "*H"]:
    """The a below 1/8 that minimises the variance of exp(a w² + …) features, given E[(x + y)²] = `spread`.

    a = (1 − 2l − sqrt((2l + 1)² + 8l)) / 16.

    Reference: Likhosherstov et al. 2022, "Chefs' random tables", theorem 3; 2023, "Dense-exponential random
    features", theorem 1.
    """
    return (1 - 2 * spread - jnp.sqrt((2 * spread + 1) ** 2 + 8 * spread)) / 16


def sum_second(m: Moments) -> Float[Array, "H H"]:
    """E[(x + y)(x + y)'] for x and y drawn independently, of one head."""
    cross = jnp.outer(m.query_mean, m.key_mean)
    return m.query_second + m.key_second + cross + cross.T


def balancing_map(m: Moments) -> tuple[Float[Array, "H H"], Float[Array, "H H"]]:
    """(P, P^-T) with E[(Px)(Px)'] = E[(P^-T y)(P^-T y)'] up to rotation, of one head.

    P'P = E[xx']^-½ (E[xx']^½ E[yy'] E[xx']^½)^½ E[xx']^-½. Directions in which nothing varies get a small variance.

    Reference: Likhosherstov et al. 2023, "Dense-exponential random features", section 3.4 (ADERF).
    """
    x = _floored(m.query_second)
    root, inverse_root = _power(x, 0.5), _power(x, -0.5)
    balanced = inverse_root @ _power(root @ _floored(m.key_second) @ root, 0.5) @ inverse_root
    return _power(balanced, 0.5), _power(balanced, -0.5)


def balancing_scale(m: Moments) -> Float[Array, " H"]:
    """p with E[(p x)_l²] = E[(y / p)_l²] for every coordinate l, of one head (SADERF)."""
    x, y = (jnp.diagonal(_floored(second)) for second in (m.query_second, m.key_second))
    return (y / x) ** 0.25


def _floored(second: Array) -> Array:
    """The matrix plus a thousandth of its mean diagonal, so that it can be inverted."""
    size = second.shape[-1]
    return second + (1e-3 * jnp.trace(second) / size + 1e-12) * jnp.eye(size)


def _power(matrix: Array, exponent: float) -> Array:
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    values = jnp.maximum(values, 1e-7 * values[-1])
    return (vectors * values**exponent) @ vectors.T
