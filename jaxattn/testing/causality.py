"""Causality: no output depends on a later input, in value or in gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.testing.arguments import (
    Axes,
    along,
    argument_labels,
    differentiate,
    is_floating,
    other_content,
    sequence_axes,
    to_float64,
)

# As large as the input, and large enough that a statistic or a maximum taken over the future moves visibly.
_SCALES = (1.0, 1e3)


def assert_causal(
    fn: Callable[..., Any],
    args: Sequence[Any],
    *,
    axis: Axes = 1,
    out_axis: int = 1,
    positions: Sequence[int] | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    check_gradients: bool = True,
    gradient_atol: float = 0.0,
    seed: int = 0,
) -> None:
    r"""Raises unless position t of the output depends only on positions <= t of every argument.

    For each t, and for one argument at a time, everything after t is replaced, once by values of the argument's own
    size and once by values a thousand times larger (integers by others from the argument's range, booleans by their
    opposite). The outputs at positions <= t must stay equal:

    $$ |f(x)_i - f(x')_i| \le atol + rtol\,|f(x)_i| \quad\text{for } i \le t,\; x'_{\le t} = x_{\le t}, $$

    bit for bit with the default tolerances. A leak through a statistic of the whole sequence (a mean, a maximum used
    for stability) may be too small to show there, so gradients are checked as well and must vanish exactly:

    $$ \frac{\partial}{\partial x_j} \sum_{i \le t} c_i \cdot f(x)_i = 0
       \quad\text{for } j > t,\; c \text{ random}. $$

    Args:
        fn: function of the arrays in `args` which returns one array, such as a kernel with `is_causal=True`, a
            module, or a token model. Anything else it needs is closed over.
        args: the arrays to call it with; queries, keys and values of any rank, energies, activations, tokens.
        axis: sequence axis of the arguments: one integer, or one entry for each, None for an argument that is not a
            sequence.
        out_axis: sequence axis of the output.
        positions: the positions t to cut at; None takes four spread over the sequence. For a kernel that works in
            blocks, choose cuts inside and between blocks, and a sequence of several blocks.
        rtol: relative tolerance of the outputs.
        atol: absolute tolerance of the outputs; raise it for what is causal only to rounding, such as an FFT.
        check_gradients: whether to check gradients, where arguments and output are floating.
        gradient_atol: largest accepted gradient with respect to a later position.
        seed: random seed of the replacement values.

    Raises:
        AssertionError: something leaks; the message names the position, the argument and the size of the leak, which
            `find_leaks` maps out.
        ValueError: no argument has a sequence axis, or the sequence has a single position.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.testing import assert_causal
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 4))
        >>> assert_causal(lambda x: jnp.cumsum(x, axis=1), (x,))
        >>> assert_causal(lambda x: x - x.mean(axis=1, keepdims=True), (x,))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: not causal: output position 0 changed by ... when argument 0 (x) was replaced after ...
    """
    labels, axes = argument_labels(fn, len(args)), sequence_axes(axis, args)
    host = [np.asarray(x) for x in args]
    length = max(x.shape[a] for x, a in zip(host, axes, strict=True) if a is not None)
    if length < 2:
        raise ValueError("causality needs a sequence of at least two positions; got length 1.")
    if positions is None:
        positions = sorted({0, length // 3, 2 * length // 3, length - 2})
    bad = [t for t in positions if not 0 <= t < length - 1]
    if bad or not positions:
        raise ValueError(
            f"positions must lie in 0..{length - 2}, so that something comes later; got {list(positions)}."
        )

    out = fn(*args)
    whole = np.asarray(out)
    if not np.isfinite(to_float64(whole)).all():
        raise AssertionError("the output is not finite, so nothing can be said about causality.")
    rng = np.random.default_rng(seed)
    for i, a in enumerate(axes):
        if a is None:
            continue
        for scale in _SCALES if is_floating(args[i]) else (1.0,):
            content = other_content(rng, host[i], scale, labels[i])
            for t in positions:
                later = along(a, slice(t + 1, None), host[i].ndim)
                changed = host[i].copy()
                changed[later] = content[later]
                got = fn(*args[:i], jnp.asarray(changed), *args[i + 1 :])
                size = "" if scale == 1.0 else f" by values {scale:g} times as large"
                _check_outputs(
                    whole,
                    np.asarray(got),
                    out_axis,
                    t,
                    rtol,
                    atol,
                    f"{labels[i]} was replaced after position {t}{size}",
                )
    if check_gradients and is_floating(out):
        _check_gradients(fn, args, axes, labels, out_axis, positions, gradient_atol, rng)


def _check_outputs(
    whole: np.ndarray, got: np.ndarray, out_axis: int, t: int, rtol: float, atol: float, when: str
) -> None:
    kept = along(out_axis % whole.ndim, slice(0, t + 1), whole.ndim)
    before, after = to_float64(whole[kept]), to_float64(got[kept])
    leak = np.abs(after - before)
    excess = ~(leak <= atol + rtol * np.abs(before))  # NaN leaks too
    if excess.any():
        other_axes = tuple(k for k in range(whole.ndim) if k != out_axis % whole.ndim)
        where = np.flatnonzero(excess.any(axis=other_axes))
        first = along(out_axis % whole.ndim, np.asarray([where[0]]), whole.ndim)
        raise AssertionError(
            f"not causal: output position {where[0]} changed by {leak[first].max():.3g} when {when} "
            f"({where.size} of the {t + 1} positions up to {t} changed, at most by {leak.max():.3g}; "
            f"allowed: atol {atol:g}, rtol {rtol:g})."
        )


def _check_gradients(
    fn: Callable[..., Any],
    args: Sequence[Any],
    axes: Sequence[int | None],
    labels: Sequence[str],
    out_axis: int,
    positions: Sequence[int],
    atol: float,
    rng: np.random.Generator,
) -> None:
    out, vjp, argnums = differentiate(fn, args)
    if not argnums:
        return
    weights = rng.standard_normal(out.shape)
    for t in positions:
        cotangent = weights.copy()
        cotangent[along(out_axis % out.ndim, slice(t + 1, None), out.ndim)] = 0.0
        gradients = vjp(jnp.asarray(cotangent, out.dtype))
        for i, gradient in zip(argnums, gradients, strict=True):
            a = axes[i]
            if a is None:
                continue
            size = np.abs(to_float64(gradient))
            later = size[along(a, slice(t + 1, None), size.ndim)]
            if not (later <= atol).all():
                other_axes = tuple(k for k in range(size.ndim) if k != a)
                worst = t + 1 + int(np.argmax(np.where(np.isnan(later), np.inf, later).max(axis=other_axes)))
                raise AssertionError(
                    f"not causal: outputs at positions <= {t} have a gradient of {np.max(later):.3g} with respect to "
                    f"{labels[i]} at position {worst} (allowed: {atol:g})."
                )
