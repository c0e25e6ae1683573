"""Argument checks that run at trace time and say what was given and what is accepted."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        accepted = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {accepted}; got {value!r}.")


def check_flag(name: str, value: Any) -> bool:
    """`value`, unless it is anything but True or False: a string such as "no" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, known at trace time; got {value!r}.")
    return bool(value)


def unknown_or(condition: Callable[[Any], Any], array: Any) -> bool:
    """Whether the values of an array are traced, or meet the condition."""
    if isinstance(array, jax.core.Tracer):
        return True
    with jax.ensure_compile_time_eval():  # inside jit, operations on constants are traced too
        return bool(condition(array))


def is_known(*sizes: Any) -> bool:
    """Whether sizes are numbers while tracing; under `jax.export` they may be symbols."""
    return not any(export.is_symbolic_dim(size) for size in sizes)


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


def check_token_mask(
    token_mask: Any, shape: tuple[int, ...], name: str = "token_mask", layout: str = "(B, T)"
) -> None:
    """Raises unless a mask over tokens is bool, with the (B, T) of the tokens."""
    check_dtype(name, token_mask, jnp.bool_, "bool, True at real tokens")
    check_shape(name, token_mask, shape, layout)


def check_pair(
    name: str, value: Any, kind: Any, accepted: str, query_shape: tuple[int, ...], key_shape: tuple[int, ...]
) -> tuple[Any, Any]:
    """One array for queries and keys alike, or a pair of two, as a checked pair; None in a pair stays None."""
    pair = isinstance(value, tuple | list)
    if not pair and query_shape != key_shape:
        raise ValueError(
            f"{name} must be a pair, (B, T) for the queries and (B, S) for the keys, where these differ in length; "
            f"got one array for T = {query_shape[-1]}, S = {key_shape[-1]}."
        )
    values = tuple(value) if pair else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be one array or a pair (query, key); got {len(values)} arrays.")
    for array, shape, layout in zip(values, (query_shape, key_shape), ("(B, T)", "(B, S)"), strict=True):
        if array is not None:
            check_dtype(name, array, kind, accepted)
            check_shape(name, array, shape, layout if len(shape) == 2 else layout.replace("B, ", ""))
    return values
