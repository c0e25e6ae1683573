"""Argument checks that run at trace time and say what was given and what is accepted."""

from collections.abc import Collection, Sequence
from typing import Any

import jax.numpy as jnp


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        accepted = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {accepted}; got {value!r}.")


def check_rank(name: str, array: Any, ranks: Sequence[int], layout: str) -> None:
    """Raises unless `array.ndim` is one of `ranks`; `layout` names the accepted axes."""
    if jnp.ndim(array) not in ranks:
        raise ValueError(f"{name} must have shape {layout}; got shape {jnp.shape(array)}.")


def check_shape(name: str, array: Any, expected: tuple[int, ...], layout: str) -> None:
    """Raises unless `array.shape` equals `expected`; `layout` names its axes."""
    if jnp.shape(array) != expected:
        raise ValueError(f"{name} must have shape {layout} = {expected}; got {jnp.shape(array)}.")


def check_broadcastable(name: str, array: Any, target: tuple[int, ...], layout: str) -> None:
    """Raises unless `array` has the rank of `target` and every axis is 1 or the target's."""
    shape = jnp.shape(array)
    if len(shape) != len(target) or any(a not in (1, t) for a, t in zip(shape, target, strict=True)):
        raise ValueError(f"{name} must be broadcastable to {layout} = {target}; got {shape}.")


def check_dtype(name: str, array: Any, kind: Any, accepted: str) -> None:
    """Raises unless the dtype of `array` is of the numpy kind `kind` (jnp.floating, jnp.bool_, ...)."""
    dtype = jnp.asarray(array).dtype
    if not jnp.issubdtype(dtype, kind):
        raise ValueError(f"{name} must be {accepted}; got dtype {dtype}.")
