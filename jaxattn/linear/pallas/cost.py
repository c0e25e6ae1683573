"""What a kernel tells the compiler about its cost."""

import math
from typing import Any

import jax
from jax.experimental import pallas as pl

from jaxattn.linear.pallas.plan import Plan
from jaxattn.linear.projection import Projection


def cost_estimate(
    plan: Plan, grid: tuple[int, int, int], projection: Projection, arrays: Any, keys: int, queries: int
) -> pl.CostEstimate:
    """Every array is moved once, but for what serves several heads or sequences, which comes again for each.

    Args:
        plan: of the call.
        grid: batch, key heads and chunks.
        projection: of the features.
        arrays: the other operands, and the results, (B, K or 1, …).
        keys: multiply-adds a key, see `products`.
        queries: likewise a query.
    """
    tokens = math.prod(grid) * plan.chunk
    count = keys + plan.groups * queries
    moved = sum(_size(x) * (grid[1] // x.shape[1]) for x in jax.tree.leaves(arrays))
    moved += sum(_size(x) * (grid[0] if x.shape[0] > 1 else 1) for x in jax.tree.leaves(projection))
    exponentials = plan.num_features * (bool(keys) + plan.groups * bool(queries))
    return pl.CostEstimate(
        flops=2 * tokens * count, transcendentals=tokens * exponentials, bytes_accessed=moved
    )


def products(plan: Plan, projected: int, state: int, pairs: tuple[int, int] = (0, 0)) -> int:
    """Multiply-adds a token: products with W, with the state, and with the features and values of its chunk."""
    features, width = plan.num_features, plan.value_width
    matrices = 0 if plan.kind.name == "given" else projected * features * plan.width
    return matrices + state * features * width + plan.chunk * (pairs[0] * features + pairs[1] * width)


def _size(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize
