"""Cotangents of a projection, which add up in VMEM over the chunks of one head."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxattn.core.pallas.layout import Blocks
from jaxattn.linear.pallas.features import Gradient
from jaxattn.linear.projection import Projection


def gradient_shapes(projection: Projection, batch: int, heads: int, learned: bool) -> Projection:
    """One set (B, K, …) a sequence and head; none if nothing is learned."""
    if not learned:
        return Projection()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, heads, *x.shape[1:]), jnp.float32), projection)


def gradient_specs(projection: Projection, blocks: Blocks, learned: bool) -> Projection:
    """Their blocks."""
    return jax.tree.map(lambda x: blocks.head(*x.shape[1:]), projection) if learned else Projection()


def add_gradient(refs: Projection, gradient: Gradient, is_key: bool) -> None:
    """Adds what one chunk of queries or keys contributes."""
    for ref, x in (
        (refs.key if is_key else refs.query, gradient.matrix),
        (refs.offset, gradient.offset),
        (refs.norm, gradient.norm),
    ):
        if ref is not None and x is not None:
            ref[...] += x


def sum_over_sequences(gradient: Projection, projection: Projection) -> Projection:
    """The cotangents (heads, …) of the projection: those of sequences, and of heads that share it, add up."""

    def total(x: Any, like: Any) -> Any:
        heads = like.shape[0]
        return x.sum(axis=0).reshape(heads, -1, *x.shape[2:]).sum(axis=1)

    return jax.tree.map(total, gradient, projection)
