"""Comparison of outputs and gradients with a plain float64 reference."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.testing.arguments import (
    argument_labels,
    describe_mismatch,
    differentiate,
    is_floating,
    to_float64,
    tolerances,
)


def assert_matches_reference(
    fn: Callable[..., Any],
    reference: Callable[..., Any],
    args: Sequence[Any],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    check_gradients: bool = True,
    seed: int = 0,
) -> None:
    r"""Raises unless outputs and gradients of `fn` equal those of a float64 reference up to rounding.

    `reference` is called inside `jax.enable_x64(True)` on the same numbers as `fn`, converted to float64, so the
    comparison sees the rounding inside `fn` alone, also in bfloat16. With random weights c, compared are

    $$ f(x) \quad\text{and}\quad \nabla_x \sum_i c_i f(x)_i \;\text{for every floating argument}, $$

    each element within atol + rtol · |reference|.

    Args:
        fn: function of the arrays in `args` which returns one array.
        reference: the same function, written for clarity; in JAX if gradients are checked, else NumPy will do.
        args: arrays to call both with.
        rtol: relative tolerance; None chooses by the output's dtype (1e-5 in float32, 2e-2 in bfloat16).
        atol: absolute tolerance; None takes `rtol` times the largest reference value, array by array.
        check_gradients: whether to compare gradients with respect to every floating argument.
        seed: random seed of the weights c.

    Raises:
        AssertionError: with the maximal absolute and relative error of every array that differs, by argument.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.testing import assert_matches_reference
        >>> x = jax.random.normal(jax.random.key(0), (4, 8))
        >>> assert_matches_reference(jax.nn.softmax, lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), (x,))
    """
    faults = []
    for name, dtype, got, expected in _results(fn, reference, args, check_gradients, seed):
        fault = describe_mismatch(got, expected, *tolerances(dtype, to_float64(expected), rtol, atol))
        if fault:
            faults.append(f"{name} {fault}")
    if faults:
        raise AssertionError("does not match the reference:\n  " + "\n  ".join(faults))


def assert_close_to_reference(
    fn: Callable[..., Any],
    reference: Callable[..., Any],
    args: Sequence[Any],
    *,
    max_error: float,
    check_gradients: bool = False,
    seed: int = 0,
) -> None:
    r"""Raises unless an approximation is within a relative error of the exact result, in norm.

    For methods that are not meant to be exact, such as random features: element by element they may be far off and
    still be good as a whole. The error of each array is

    $$ \lVert f(x) - \text{reference}(x) \rVert_2 \,/\, \lVert \text{reference}(x) \rVert_2 \le max\_error, $$

    with the reference in float64 as in `assert_matches_reference`, which is the check for what should be exact.

    Args:
        fn: function of the arrays in `args` which returns one array.
        reference: the exact function; in JAX if gradients are checked, else NumPy will do.
        args: arrays to call both with.
        max_error: largest accepted relative error.
        check_gradients: whether the gradients of a random weighting of the output are held to the same bound.
        seed: random seed of the weights c.

    Raises:
        AssertionError: with the relative error of every array beyond the bound.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.testing import assert_close_to_reference
        >>> x = 0.1 * jax.random.normal(jax.random.key(0), (4, 8))
        >>> assert_close_to_reference(lambda x: 1 + x + x**2 / 2, jnp.exp, (x,), max_error=1e-3)
        >>> assert_close_to_reference(lambda x: 1 + x, jnp.exp, (x,), max_error=1e-3)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: too far from the reference: the output has relative error ... (at most 0.001)
    """
    faults = []
    for name, _, got, expected in _results(fn, reference, args, check_gradients, seed):
        got, expected = to_float64(got), to_float64(expected)
        if got.shape != expected.shape:
            faults.append(f"{name} has shape {got.shape} instead of {expected.shape}")
            continue
        error = float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) or 1.0))
        if not error <= max_error:  # NaN is too far
            faults.append(f"{name} has relative error {error:.3g} (at most {max_error:g})")
    if faults:
        raise AssertionError("too far from the reference: " + "; ".join(faults))


def _results(
    fn: Callable[..., Any],
    reference: Callable[..., Any],
    args: Sequence[Any],
    check_gradients: bool,
    seed: int,
) -> Iterator[tuple[str, Any, Any, Any]]:
    """(name, dtype to judge by, array, float64 array) of the output and of every gradient."""
    labels = argument_labels(fn, len(args))
    exact = [np.asarray(x).astype(np.float64) if is_floating(x) else np.asarray(x) for x in args]
    if not (check_gradients and any(is_floating(x) for x in args)):
        with jax.enable_x64(True):
            expected_out = np.asarray(reference(*(jnp.asarray(x) for x in exact)))
        out = fn(*args)
        yield "the output", out.dtype, out, expected_out
        return
    out, vjp, argnums = differentiate(fn, args)
    weights = jnp.asarray(np.random.default_rng(seed).standard_normal(out.shape), out.dtype)
    gradients = vjp(weights)
    with jax.enable_x64(True):
        expected, reference_vjp, _ = differentiate(reference, [jnp.asarray(x) for x in exact])
        if not (expected.shape == out.shape and expected.dtype == jnp.float64):
            raise AssertionError(
                f"the reference must give float64 of shape {out.shape} in 64-bit mode; got {expected.dtype} of "
                f"shape {expected.shape}."
            )
        expected_gradients = [
            np.asarray(g) for g in reference_vjp(jnp.asarray(np.asarray(weights).astype(np.float64)))
        ]
    yield "the output", out.dtype, out, np.asarray(expected)
    for i, gradient, exact_gradient in zip(argnums, gradients, expected_gradients, strict=True):
        # A float32 parameter beside bfloat16 activations has a gradient that went through bfloat16.
        coarse = min(out.dtype, gradient.dtype, key=lambda d: -jnp.finfo(d).eps)
        yield f"the gradient of {labels[i]}", coarse, gradient, exact_gradient
