"""Products inside a kernel that have a gradient there, of float32 arrays with rounded operands."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.pallas.products import nn, nt, split, tn

_FORWARD = {"nn": nn, "nt": nt, "tn": tn}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def product(kind: str, dtype: Any, in_parts: bool, a: Array, b: Array) -> Array:
    """a b, a b' or a' b by `kind`, "nn", "nt" or "tn".

    Args:
        kind: which are transposed.
        dtype: that operands are rounded to; cotangents, too, before they are multiplied.
        in_parts: whether `a` is taken in two parts, rounded to 2^-17 if the dtype is bfloat16.
        a: float32.
        b: float32.
    """
    parts, b = split(a, dtype) if in_parts else [a.astype(dtype)], b.astype(dtype)
    return functools.reduce(jnp.add, (_FORWARD[kind](part, b) for part in parts))


def _forward(kind: str, dtype: Any, in_parts: bool, a: Array, b: Array) -> tuple[Array, Any]:
    return product(kind, dtype, in_parts, a, b), (a, b)


def _backward(kind: str, dtype: Any, in_parts: bool, operands: Any, grad: Array) -> tuple[Array, Array]:
    a, b, grad = (x.astype(dtype) for x in (*operands, grad))
    if kind == "nn":
        return nt(grad, b), tn(a, grad)
    if kind == "nt":
        return nn(grad, b), tn(grad, a)
    return nt(b, grad), nn(a, grad)


product.defvjp(_forward, _backward)


def narrow(kind: str, dtype: Any, a: Array, b: Array) -> Array:
    """`product` with both operands rounded to `dtype`."""
    return product(kind, dtype, False, a, b)


def near(kind: str, dtype: Any, a: Array, b: Array) -> Array:
    """`product` with `a` to 2^-17 and `b` rounded to `dtype`, which it should not change."""
    return product(kind, dtype, True, a, b)


def wide(kind: str, a: Array, b: Array) -> Array:
    """`product` in float32."""
    return product(kind, jnp.float32, False, a, b)
