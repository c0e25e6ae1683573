"""Equality of stepwise decoding and the whole forward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.testing.arguments import Axes, along, common_length, describe_mismatch, sequence_axes, tolerances


def assert_decode_matches(
    whole: Callable[..., Any],
    init: Callable[[], Any],
    step: Callable[..., tuple[Any, Any]],
    args: Sequence[Any],
    *,
    axis: Axes = 1,
    out_axis: int = 1,
    prefill: int = 1,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Raises unless feeding a sequence token by token gives what one pass over all of it gives.

    `step` is called with positions [0, prefill) first and with one position at a time afterwards; what it returns,
    concatenated, must equal `whole(*args)`. The state must keep the structure, shapes and dtypes of `init()`, so
    that a decoding loop compiles once.

    Args:
        whole: function of the arrays in `args` which returns one array, causal.
        init: gives the state before the first position.
        step: `(state, *args at some positions) -> (state, output at these positions)`. Arguments that are no
            sequences (`axis` None) are handed over whole at every step.
        args: arrays to call it with; all sequence axes have one length.
        axis: sequence axis of the arguments: one integer, or one entry for each, None for what is not a sequence.
        out_axis: sequence axis of the output.
        prefill: how many positions the first call takes.
        rtol: relative tolerance; None chooses by the output's dtype.
        atol: absolute tolerance; None takes `rtol` times the largest expected value.

    Raises:
        AssertionError: if an output differs, naming the first position that does, or if the state changes its shape.
        ValueError: if the sequence arguments differ in length, or `prefill` does not fit.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.testing import assert_decode_matches
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 4))
        >>> def step(total, x):
        ...     sums = total + jnp.cumsum(x, axis=1)
        ...     return sums[:, -1:], sums
        >>> assert_decode_matches(lambda x: jnp.cumsum(x, 1), lambda: jnp.zeros((2, 1, 4)), step, (x,), prefill=3)
    """
    axes = sequence_axes(axis, args)
    length = common_length(args, axes)
    if not 1 <= prefill <= length:
        raise ValueError(f"prefill must lie in 1..{length}; got {prefill}.")
    expected = np.asarray(whole(*args))
    state = jax.tree.map(jnp.asarray, init())
    for start, stop in [(0, prefill)] + [(t, t + 1) for t in range(prefill, length)]:
        piece = [
            x if a is None else x[along(a, slice(start, stop), jnp.ndim(x))]
            for x, a in zip(args, axes, strict=True)
        ]
        new_state, out = step(state, *piece)
        new_state = jax.tree.map(jnp.asarray, new_state)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
        state = new_state
        part = expected[along(out_axis % expected.ndim, slice(start, stop), expected.ndim)]
        fault = describe_mismatch(
            out, part, *tolerances(expected.dtype, np.asarray(expected, np.float64), rtol, atol)
        )
        if fault:
            at = f"positions {start}..{stop - 1}" if stop - start > 1 else f"position {start}"
            raise AssertionError(f"decoding departs from the whole pass at {at}: the output {fault}.")
