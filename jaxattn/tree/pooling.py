"""Sums, means and scores over the children of each node, in log space.

Arrays have key/value heads K first, then the parents F and their children b, then the G query heads that share a
key/value head. A removed leaf has log weight −inf; scores may have any size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

# For every level from the leaves up, what is added to the scores between siblings: (K or 1, b, G or 1, b), or None.
Biases = Sequence[Array | None]


class Leaves(NamedTuple):
    """query (K, T, G, H), key (K, T, H), value (K, T, V) and log_weight (K, T), the log of the weight as a key.

    log_weight has the accumulation dtype; the others too, but for bfloat16 outside of blocks.
    """

    query: Array
    key: Array
    value: Array
    log_weight: Array

    def widened(self) -> "Leaves":
        """All in the accumulation dtype."""
        return Leaves(*(x.astype(self.log_weight.dtype) for x in self))


@jax.custom_jvp
def log_shares(x: Array) -> tuple[Array, Array]:
    """(log Σ e^x, e^x / Σ e^x) over the last axis; −inf and zeros where all are −inf. All gradients are finite."""
    top = x.max(axis=-1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0)
    powers = jnp.exp(x - top)
    total = powers.sum(axis=-1)
    positive = total > 0
    total = jnp.where(positive, total, 1)
    return jnp.where(positive, jnp.log(total) + top[..., 0], -jnp.inf), powers / total[..., None]


@log_shares.defjvp
def _log_shares_tangent(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (tangent,) = tangents
    log_total, shares = log_shares(*primals)
    mean = (shares * tangent).sum(axis=-1)
    return (log_total, shares), (mean, shares * (tangent - mean[..., None]))


def divide(x: Array, by: Array) -> Array:
    """x / by with 0 / 0 = 0."""
    return x / jnp.where(by == 0, 1, by)


def pool(log_weight: Array, *means: Array) -> tuple[Array, ...]:
    """The log of the summed weights (…, F) and weighted means of (…, F, b, D) over the children of each node."""
    total, share = log_shares(log_weight)
    # Matrix products, since XLA would fuse the gathers into sums of elementwise products at many times the cost.
    return total, *(jnp.einsum("...d,...dh->...h", share, x) for x in means)


def scores(query: Array, key: Array, scale: float, bias: Array | None) -> Array:
    """scale q·k + bias of all pairs of children: (K, F, c, G, H), (K, F, d, H) -> (K, F, c, G, d)."""
    rows = query.reshape(*query.shape[:2], -1, query.shape[-1])
    found = scale * jnp.einsum("kfrh,kfdh->kfrd", rows, key)
    found = found.reshape(*query.shape[:-1], -1)
    return found if bias is None else found + bias


def weighted_sum(weights: Array, value: Array) -> Array:
    """Σ_d weights_d value_d over the children: (K, F, c, G, d), (K, F, d, V) -> (K, F, c, G, V)."""
    rows = weights.reshape(*weights.shape[:2], -1, weights.shape[-1])
    found = jnp.einsum("kfrd,kfdv->kfrv", rows, value)
    return found.reshape(*weights.shape[:-1], -1)
