"""Helpers of the checks: names, axes and replacement of arguments, comparison of arrays."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Axes = int | Sequence[int | None]

# Relative tolerance by dtype: a few roundings of sums over a hundred terms.
_TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}


def is_floating(array: Any) -> bool:
    """Whether gradients can flow into `array`."""
    return bool(jnp.issubdtype(jnp.asarray(array).dtype, jnp.floating))


def to_float64(array: Any) -> np.ndarray:
    """The array on the host, in a precision in which differences are exact enough to judge."""
    return np.asarray(array).astype(np.float64)


def argument_labels(fn: Callable[..., Any], count: int) -> list[str]:
    """How messages name the arguments: "argument 1 (key)", or "argument 1" where `fn` does not name them."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in positional]
    return [f"argument {i} ({names[i]})" if i < len(names) else f"argument {i}" for i in range(count)]


def sequence_axes(axis: Axes, args: Sequence[Any]) -> list[int | None]:
    """One non-negative sequence axis (or None) an argument."""
    axes = [axis] * len(args) if isinstance(axis, int) else list(axis)
    if len(axes) != len(args):
        raise ValueError(
            f"axis must be an int or one entry for each of the {len(args)} arguments; got {axis!r}."
        )
    resolved: list[int | None] = []
    for i, (a, x) in enumerate(zip(axes, args, strict=True)):
        if a is not None and not -jnp.ndim(x) <= a < jnp.ndim(x):
            raise ValueError(f"axis {a} is out of range for argument {i} of shape {jnp.shape(x)}.")
        resolved.append(None if a is None else a % jnp.ndim(x))
    if all(a is None for a in resolved):
        raise ValueError("axis names no sequence argument: at least one entry must not be None.")
    return resolved


def common_length(args: Sequence[Any], axes: Sequence[int | None]) -> int:
    """The one length of all sequence axes."""
    found = {jnp.shape(x)[a] for x, a in zip(args, axes, strict=True) if a is not None}
    if len(found) != 1:
        raise ValueError(f"all sequence arguments must have one length; got {sorted(found)}.")
    return found.pop()


def along(axis: int, index: slice | np.ndarray, ndim: int) -> tuple[Any, ...]:
    """An index which selects `index` on `axis` and everything elsewhere."""
    return (slice(None),) * axis + (index,) + (slice(None),) * (ndim - axis - 1)


def other_content(rng: np.random.Generator, array: np.ndarray, scale: float, label: str) -> np.ndarray:
    """Content of the same shape and dtype which differs everywhere: normal with `scale` times the size of `array`,
    other integers from the same range, flipped booleans."""
    if array.dtype == bool:
        return ~array
    if np.issubdtype(array.dtype, np.integer):
        low, high = int(array.min()), int(array.max())
        if low == high:
            raise ValueError(f"{label} holds only the integer {low}: give it at least two values to swap.")
        return (low + (array - low + rng.integers(1, high - low + 1, array.shape)) % (high - low + 1)).astype(
            array.dtype
        )
    values = to_float64(array)
    finite = values[np.isfinite(values)]
    size = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    return (rng.standard_normal(array.shape) * (scale * (size or 1.0))).astype(array.dtype)


def tolerances(
    dtype: Any, reference: np.ndarray, rtol: float | None, atol: float | None
) -> tuple[float, float]:
    """The given tolerances, or the dtype's: `rtol`, and as `atol` the same share of the largest reference value."""
    if rtol is None:
        rtol = _TOLERANCE[jnp.dtype(dtype).name]
    if atol is None:
        finite = np.abs(reference[np.isfinite(reference)])
        atol = rtol * float(finite.max(initial=0.0))
    return rtol, atol


def describe_mismatch(got: Any, expected: Any, rtol: float, atol: float) -> str | None:
    """None where |got - expected| <= atol + rtol |expected| everywhere, else the errors, in words."""
    got, expected = to_float64(got), to_float64(expected)
    if got.shape != expected.shape:
        return f"has shape {got.shape} instead of {expected.shape}"
    same = got == expected  # infinities of one sign agree
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(got - expected))
    bad = ~(error <= atol + rtol * np.abs(expected))  # NaN is bad
    if not bad.any():
        return None
    if not np.isfinite(got[bad]).all():
        worst = np.argwhere(bad & ~np.isfinite(got))[0]
        at = tuple(int(i) for i in worst)
        return f"is {got[at]} instead of {expected[at]:.6g} at {at} ({int((~np.isfinite(got)).sum())} not finite)"
    at = tuple(int(i) for i in np.unravel_index(np.argmax(np.where(bad, error, -1.0)), error.shape))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(error > 0, error / np.abs(expected), 0.0)
    return (
        f"differs at {int(bad.sum())} of {bad.size} places: max abs error {error.max():.3g}, "
        f"max rel error {relative.max():.3g}, worst at {at}: {got[at]:.6g} instead of {expected[at]:.6g} "
        f"(rtol {rtol:.1e}, atol {atol:.1e})"
    )


def differentiate(
    fn: Callable[..., Any], args: Sequence[Any]
) -> tuple[jax.Array, Callable[[Any], Any], list[int]]:
    """Output, vector-Jacobian product and the numbers of the arguments it differentiates (the floating ones)."""
    argnums = [i for i, x in enumerate(args) if is_floating(x)]

    def of_floats(*floats: Any) -> Any:
        full = list(args)
        for i, x in zip(argnums, floats, strict=True):
            full[i] = x
        return fn(*full)

    out, vjp = jax.vjp(of_floats, *(args[i] for i in argnums))
    return out, vjp, argnums
