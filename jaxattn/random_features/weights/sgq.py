"""A sparse-grid quadrature rule, subsampled."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn.core.checks import check_choice
from jaxattn.core.pytree import register
from jaxattn.random_features.weights.base import Rows
from jaxattn.random_features.weights.draws import check_sizes, haar


@functools.lru_cache(maxsize=64)
def _grid(dim: int, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kinds of points of the Smolyak rule: values of their nonzero coordinates, weight of one, and number.

    The rule is the sum of Δ_k1 ⊗ … ⊗ Δ_kH over Σ (k_j − 1) ≤ level, with Δ_k the difference of the
    one-dimensional Gauss–Hermite rules of 2k − 1 and 2k − 3 nodes and Δ_1 the rule of the node 0.
    """
    node, zero, side = math.sqrt(3), 2 / 3, 1 / 6  # three nodes: 0 and ±node
    d2, pairs = zero - 1, dim * (dim - 1) // 2
    if level == 1:
        kinds = [((0.0, 0.0), 1 + dim * d2, 1), ((node, 0.0), side, 2 * dim)]
    else:
        nodes, weights = np.polynomial.hermite_e.hermegauss(5)
        inner, outer = nodes[3], nodes[4]
        five = weights / weights.sum()
        d3 = five[2] - zero
        kinds = [
            ((0.0, 0.0), 1 + dim * (d2 + d3) + pairs * d2**2, 1),
            ((node, 0.0), (dim - 1) * d2 * side, 2 * dim),
            ((inner, 0.0), five[3], 2 * dim),
            ((outer, 0.0), five[4], 2 * dim),
            ((node, node), side**2, 4 * pairs),
        ]
    values, weight, count = zip(*kinds, strict=True)
    return np.array(values), np.array(weight), np.array(count)


@register
@dataclasses.dataclass(frozen=True)
class SGQ(Rows):
    """Points of the Smolyak Gauss–Hermite rule, drawn in proportion to |weight| and rotated together.

    The rule Σ a_i f(z_i) integrates every polynomial of degree 3 (level 1) or 5 (level 2) exactly against
    N(0, I). M of its points are drawn, stratified, with probability |a_i|/A, A = Σ |a_i|, and a uniform
    orthogonal matrix rotates them, so that E (1/M) Σ A sign(a_m) f(w_m) is that integral. The rule's own error
    for other f, such as exp(w·x), stays: this family is biased, the less the smaller |x| is.

    The rule has negative weights: A is about 2H/3 at level 1 and grows like H² at level 2, and the estimate is a
    difference of two nearly equal numbers of that size. M must be well above A for it to be of use, its variance is
    mostly above that of Gaussian rows, and positive features can give negative kernel values and normalisers. Take it
    for small H, and for comparison. O(M H).

    Only the positive exponential components can use the nodes: those with a tilt (gerf to saderf) then equal posrf on
    the transformed queries and keys. `FeatureMap.create` refuses the others, whose waves, signs and counts are far
    from polynomials: their estimates do not converge to exp(x·y).

    Attributes:
        level: 1 or 2.
        row_signs: sign(a_m).

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.random_features.weights import SGQ
        >>> weights = SGQ.create(jax.random.key(0), head_dim=6, num_rows=64)
        >>> round(float(jnp.exp(weights.log_weights[0])), 3)  # A
        3.0

    Reference: Dao, De Sa & Ré 2017, "Gaussian quadrature for kernel features".
    """

    is_quadrature: ClassVar[bool] = True

    level: int
    row_signs: Any  # (M,)

    @classmethod
    def create(cls, key: PRNGKeyArray, head_dim: int, num_rows: int, *, level: int = 1) -> "SGQ":
        """Draws the points and the rotation."""
        check_sizes(head_dim, num_rows)
        check_choice("level", level, (1, 2))
        values, weight, count = _grid(head_dim, level)
        mass = np.abs(weight) * count
        end = np.cumsum(mass / mass.sum())
        end[-1] = 1.0
        key_kind, key_point, key_rotation = jax.random.split(key, 3)
        strata = (jnp.arange(num_rows) + jax.random.uniform(key_kind, (num_rows,))) / num_rows
        kind = jnp.searchsorted(jnp.asarray(end), strata, side="right").clip(max=len(end) - 1)
        first, step, *flips = jax.random.uniform(key_point, (4, num_rows))
        first = jnp.floor(first * head_dim)
        step = 1 + jnp.floor(step * max(head_dim - 1, 1))
        columns = jnp.arange(head_dim)
        points = jnp.zeros((num_rows, head_dim))
        for i, place in enumerate((first, (first + step) % head_dim)):
            value = jnp.asarray(values[:, i])[kind] * jnp.where(flips[i] < 0.5, -1, 1)
            points += value[:, None] * (columns == place[:, None])
        rotation = haar(key_rotation, head_dim, 1)[0]
        rows = jnp.matmul(points, rotation, precision=jax.lax.Precision.HIGHEST)
        return cls(head_dim, num_rows, rows, level, jnp.where(weight < 0, -1.0, 1.0)[kind])

    @property
    def log_weights(self) -> Float[Array, " M"]:
        """log A for every row."""
        _, weight, count = _grid(self.head_dim, self.level)
        return jnp.full((self.num_rows,), math.log(np.abs(weight) @ count))

    @property
    def signs(self) -> Float[Array, " M"]:
        """sign(a_m)."""
        return self.row_signs
