"""Invariance of outputs and gradients to padding."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.testing.arguments import (
    Axes,
    argument_labels,
    common_length,
    describe_mismatch,
    differentiate,
    is_floating,
    other_content,
    sequence_axes,
    to_float64,
    tolerances,
)


def assert_padding_invariant(
    fn: Callable[..., Any],
    args: Sequence[Any],
    *,
    lengths: Sequence[int] | None = None,
    axis: Axes = 1,
    out_axis: int | None = 1,
    extra: int = 3,
    nan: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    check_gradients: bool = True,
    seed: int = 0,
) -> None:
    """Raises unless outputs and gradients at valid positions ignore what padding holds and how long it is.

    `fn(*args, mask)` receives a boolean mask (B, L), True at valid positions, to apply in whatever form it needs (a
    key bias of −inf, lengths `mask.sum(-1)`, ...). It is called with the padding of every sequence argument set to
    zeros, to other values, to NaN, and to NaN with `extra` more positions. At valid positions, outputs must be finite
    and agree with the first call; so must the gradients of a random weighting of the valid outputs, which must be
    zero at the padding itself.

    Args:
        fn: function of the arrays in `args` and of the mask, which returns one array.
        args: arrays to call it with; all sequence axes have one length L.
        lengths: number of valid positions of each batch row, at the front; None spreads them from L/2 to L − 1.
        axis: sequence axis of the arguments: one integer, or one entry an argument, None for what has no padding. The
            batch is axis 0; a sequence axis of 0 means that there is no batch, and a mask (L,).
        out_axis: sequence axis of the output, None if it has none (a pooled output, or padding in the keys alone).
        extra: how many positions the last call pads further.
        nan: whether to put NaN into the padding of floating arguments; large values take its place otherwise.
        rtol: relative tolerance; None chooses by the output's dtype.
        atol: absolute tolerance; None takes `rtol` times the largest expected value.
        check_gradients: whether to check gradients, where arguments and output are floating.
        seed: random seed of the values put into the padding.

    Raises:
        AssertionError: if padding shows, naming what was changed and the size of the difference.
        ValueError: if the sequence arguments differ in length, or `lengths` leaves no padding.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.testing import assert_padding_invariant
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 4))
        >>> def masked_mean(x, mask):
        ...     return jnp.where(mask[..., None], x, 0).sum(1) / mask.sum(1, keepdims=True)
        >>> assert_padding_invariant(masked_mean, (x,), out_axis=None)
        >>> assert_padding_invariant(lambda x, mask: x.mean(1), (x,), out_axis=None)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: padding reaches the output when the padding holds other values: it differs at ...
    """
    labels, axes = argument_labels(fn, len(args)), sequence_axes(axis, args)
    host = [np.asarray(x) for x in args]
    length = common_length(args, axes)
    batched = 0 not in axes
    batch = next(x.shape[0] for x, a in zip(host, axes, strict=True) if a is not None) if batched else 1
    if lengths is None:
        lengths = np.linspace(max(1, length // 2), max(1, length - 1), batch).astype(int).tolist()
    if len(lengths) != batch or not all(1 <= n <= length for n in lengths) or min(lengths) == length:
        raise ValueError(
            f"lengths must be {batch} integers in 1..{length}, one less than {length}; got {list(lengths)}."
        )

    rng = np.random.default_rng(seed)
    poison = "NaN" if nan else "large values"
    cases = (
        ("zeros", 0, "the padding holds zeros"),
        ("other values", 0, "the padding holds other values"),
        (poison, 0, f"the padding holds {poison}"),
        (poison, extra, f"the padding is {extra} longer and holds {poison}"),
    )
    calls = []
    for content, longer, when in cases:
        mask = np.arange(length + longer) < np.asarray(lengths)[:, None]
        mask = mask if batched else mask[0]
        filled = [
            x if a is None else _fill(rng, x, a, mask, longer, content, labels[i])
            for i, (x, a) in enumerate(zip(host, axes, strict=True))
        ]
        out, vjp, argnums = _call(fn, filled, mask, check_gradients)
        calls.append((when, mask, out, vjp, argnums))
    _compare(
        "the output",
        [(when, to_float64(out)[_selected(out.ndim, mask, out_axis)]) for when, mask, out, _, _ in calls],
        calls[0][2].dtype,
        rtol,
        atol,
    )
    if not check_gradients or calls[0][3] is None:
        return

    gradients: dict[int, list[tuple[str, np.ndarray]]] = {}
    first = np.asarray(calls[0][2])[_selected(calls[0][2].ndim, calls[0][1], out_axis)]
    weights = rng.standard_normal(first.shape)
    for when, mask, out, vjp, argnums in calls:
        assert vjp is not None
        cotangent = np.zeros(out.shape)
        cotangent[_selected(out.ndim, mask, out_axis)] = weights
        for i, g in zip(argnums, vjp(jnp.asarray(cotangent, out.dtype)), strict=True):
            gradient, a = to_float64(g), axes[i]
            gradients.setdefault(i, []).append((when, gradient[_selected(gradient.ndim, mask, a)]))
            leak = np.abs(gradient[_selected(gradient.ndim, ~mask, a)]) if a is not None else np.zeros(0)
            if not (leak == 0).all():  # NaN is a leak
                raise AssertionError(
                    f"padding gets a gradient when {when}: that of {labels[i]} is {np.max(leak):.3g} there, not 0."
                )
    for i, found_gradients in gradients.items():
        _compare(f"the gradient of {labels[i]}", found_gradients, calls[0][2].dtype, rtol, atol)


def _compare(
    name: str, results: list[tuple[str, np.ndarray]], dtype: Any, rtol: float | None, atol: float | None
) -> None:
    """Every (when, values) against the first."""
    expected = results[0][1]
    for when, values in results:
        if not np.isfinite(values).all():
            raise AssertionError(f"{name} is not finite at valid positions when {when}.")
        fault = describe_mismatch(values, expected, *tolerances(dtype, expected, rtol, atol))
        if fault:
            raise AssertionError(f"padding reaches {name} when {when}: it {fault}.")


def _selected(ndim: int, mask: np.ndarray, axis: int | None) -> Any:
    """Index of the valid (batch, position) pairs; the whole array where `axis` is None."""
    if axis is None:
        return ...
    axis %= ndim
    # The mask takes axes (0, axis) together; only adjacent axes can be indexed by one mask.
    return (
        np.nonzero(mask)
        if axis <= 1
        else (np.nonzero(mask)[0], *(slice(None),) * (axis - 1), np.nonzero(mask)[1])
    )


def _fill(
    rng: np.random.Generator,
    x: np.ndarray,
    axis: int,
    mask: np.ndarray,
    longer: int,
    content: str,
    label: str,
) -> Any:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, longer)
    new = np.pad(x, widths, mode="edge")
    floating = is_floating(x)
    if content == "zeros":
        filler = np.zeros_like(new)
    elif content == "NaN" and floating:
        filler = np.full_like(new, np.nan)
    else:
        filler = other_content(rng, new, 1e3 if content == "large values" else 1.0, label)
    padding = _selected(new.ndim, ~mask, axis)
    new[padding] = filler[padding]
    return jnp.asarray(new)


def _call(
    fn: Callable[..., Any], args: list[Any], mask: np.ndarray, check_gradients: bool
) -> tuple[Any, Callable[[Any], Any] | None, list[int]]:
    """The output, its vector-Jacobian product where there is one to check, and the arguments that differentiates."""
    valid = jnp.asarray(mask)
    if check_gradients and any(is_floating(x) for x in args):
        out, vjp, argnums = differentiate(lambda *a: fn(*a, valid), args)
        return out, vjp, argnums
    return fn(*args, valid), None, []
