"""Features of queries and keys before a sweep: exponentials of a dense matrix by a kernel, all others by XLA."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.linear.mosaic_gpu.chunk import SLICE, widen
from jaxattn.linear.mosaic_gpu.exponentials import exponentials
from jaxattn.linear.plan import FeatureFunctions, Parameters
from jaxattn.linear.projection import Kind, Projection

# What of a matrix W fits into shared memory, in squares of `SLICE`.
_MOST_SQUARES = 8


def make_features(
    features: FeatureFunctions, parameters: Parameters, call: Call
) -> tuple[Array, Array, Array]:
    """Those of queries (B, T, N, F) and keys (B, T, K, F), and the log scales (B, K, T) of the latter.

    F is a multiple of `SLICE`, with zeros behind. Of the kernel they are bfloat16, of XLA float32.
    """
    if features.fused is not None and features.fused.kind.name == "exponential":
        projection = features.fused.project(parameters, features.by_head)
        number, width = projection.query.shape[1:]
        if projection.norm is None and -(-number // SLICE) * -(-width // SLICE) <= _MOST_SQUARES:
            return _exponential(features.fused.kind, projection, call)
    axes = features.axes(), 2, None
    query, _ = jax.vmap(features.query, axes, 2)(parameters, call.query, None)
    key, scale = jax.vmap(features.key, axes, 2)(parameters, call.key, None)
    return widen(_ungrouped(query)), widen(key), jnp.moveaxis(scale, 1, 2)


def _exponential(kind: Kind, projection: Projection, call: Call) -> tuple[Array, Array, Array]:
    rows = (0, -projection.query.shape[1] % SLICE)
    offset = jnp.pad(projection.offset[..., 0], ((0, 0), rows), constant_values=-jnp.inf)

    def make(matrix: Array, x: Array) -> tuple[Array, Array]:
        matrix = widen(jnp.pad(matrix, ((0, 0), rows, (0, 0))))
        return exponentials(widen(x), matrix.astype(jnp.float32), offset.astype(jnp.float32))

    query, _ = make(projection.query, _ungrouped(call.query))
    key, scale = make(projection.key, call.key)
    if kind.with_scale:
        scale -= jnp.moveaxis(0.5 * kind.square * jnp.square(call.key.astype(jnp.float32)).sum(axis=-1), 1, 2)
    else:
        scale = jnp.zeros_like(scale)
    return query, key, scale


def _ungrouped(query: Array) -> Array:
    return query.reshape(*query.shape[:2], -1, query.shape[-1])
