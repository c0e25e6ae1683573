"""Features of a chunk of tokens inside a kernel. Tokens are columns (C), features rows (F)."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.pallas.products import nn, nt, split, tn
from jaxattn.linear.projection import Kind


class Gradient(NamedTuple):
    """Cotangents of what made one chunk's features: x (D, C), and the projection's arrays if they are learned."""

    x: Array
    matrix: Array | None = None
    offset: Array | None = None
    norm: Array | None = None


# (cotangents of the values (F, C) and of the log scale (1, C), None for queries) -> cotangents
Pull = Callable[[Array, Array | None], Gradient]


def make_features(
    kind: Kind, matrix: Array | None, offset: Array | None, norm: Array | None, x: Array, learned: bool
) -> tuple[Array, Array, Pull]:
    """Values (F, C) of magnitude about 1 at most, their log scale (1, C), and the transpose, of tokens x (D, C)."""
    if kind.name == "given":
        return _given(x)
    assert matrix is not None and offset is not None
    sign = -1.0 if kind.name == "exponential" else 1.0
    u, first = _apply(matrix, x)
    if norm is None:
        normed, norm_first = x.astype(jnp.float32) * math.sqrt(kind.square), None
    else:
        normed, norm_first = _apply(norm, x)
    scale = sign * 0.5 * jnp.square(normed).sum(axis=0, keepdims=True)
    if kind.name == "exponential":
        logarithm = u + offset
        top = logarithm.max(axis=0, keepdims=True)
        values, scale = jnp.exp(logarithm - top), top + scale
    else:
        size = jnp.exp(offset)
        values = jnp.concatenate([size * jnp.cos(u), size * jnp.sin(u)], axis=0)
    if not kind.with_scale:
        scale = jnp.zeros_like(scale)

    def pull(grad: Array, grad_scale: Array | None) -> Gradient:
        if kind.name == "exponential":
            of_u = of_offset = grad * values
        else:
            (cos, sin), (of_cos, of_sin) = (jnp.split(array, 2) for array in (values, grad))
            of_u, of_offset = of_sin * cos - of_cos * sin, of_cos * cos + of_sin * sin
        narrow = of_u.astype(x.dtype)
        of_x, of_norm = tn(first, narrow), None
        if grad_scale is not None and kind.with_scale:
            of_normed = sign * grad_scale * normed
            if norm_first is None:
                of_x += of_normed * math.sqrt(kind.square)
            else:
                of_normed = of_normed.astype(x.dtype)
                of_x += tn(norm_first, of_normed)
                of_norm = nt(of_normed, x) if learned else None
        if not learned:
            return Gradient(of_x)
        return Gradient(of_x, nt(narrow, x), of_offset.sum(axis=1, keepdims=True), of_norm)

    return values, scale, pull


def _apply(matrix: Array, x: Array) -> tuple[Array, Array]:
    """matrix x to 2^-17 |matrix| |x|, as it is exponentiated, and the matrix in the dtype of x."""
    parts = split(matrix, x.dtype)
    return functools.reduce(jnp.add, (nn(part, x) for part in parts)), parts[0]


def _given(x: Array) -> tuple[Array, Array, Pull]:
    """Divided by a power of two near their largest, which rounds nothing."""
    wide = x.astype(jnp.float32)
    top = jnp.abs(wide).max(axis=0, keepdims=True)
    # The exponent's field in a float32: top lies in [2^(field − 127), 2^(field − 126)).
    bits = jnp.int32(23)  # of the mantissa
    field = jnp.maximum(lax.shift_right_logical(lax.bitcast_convert_type(top, jnp.int32), bits), 1)
    inverse = lax.bitcast_convert_type(lax.shift_left(jnp.maximum(253 - field, 1), bits), jnp.float32)
    scale = (field - 126).astype(jnp.float32) * math.log(2)
    return wide * inverse, scale, lambda grad, _: Gradient(grad * inverse)
