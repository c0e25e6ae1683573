"""A prefix of the input gives the same prefix of the output."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.testing.arguments import (
    Axes,
    along,
    common_length,
    describe_mismatch,
    sequence_axes,
    to_float64,
    tolerances,
)


def assert_prefix_matches(
    fn: Callable[..., Any],
    args: Sequence[Any],
    *,
    axis: Axes = 1,
    out_axis: int = 1,
    lengths: Sequence[int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    r"""Raises unless a prefix of the input gives the same prefix of the output.

    $$ f(x_{\le t}) = f(x)_{\le t} \quad\text{for every } t \text{ in } lengths $$

    Generation relies on this: a model that is scored on whole sequences is run on prefixes when it generates. The
    check also finds what `assert_causal` cannot see: outputs that depend on the length itself, through a division by
    it, a window or a position counted from the end.

    Args:
        fn: function of the arrays in `args` which returns one array, such as a language model's logits.
        args: the arrays to call it with; all sequence axes have one length.
        axis: sequence axis of the arguments: one integer, or one entry for each, None for what is not a
            sequence.
        out_axis: sequence axis of the output.
        lengths: the lengths t of prefixes; None takes four spread over the sequence. Each is compiled by itself.
        rtol: relative tolerance; None chooses by the output's dtype.
        atol: absolute tolerance; None takes `rtol` times the largest expected value.

    Raises:
        AssertionError: naming the prefix and the size of the difference.
        ValueError: if the sequence arguments differ in length, or `lengths` does not fit.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.testing import assert_prefix_matches
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 4))
        >>> assert_prefix_matches(lambda x: jnp.cumsum(x, axis=1), (x,))
        >>> assert_prefix_matches(lambda x: jnp.cumsum(x, axis=1) / x.shape[1], (x,))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: the prefix of length 1 gives another output than the whole sequence: it differs at ...
    """
    axes = sequence_axes(axis, args)
    length = common_length(args, axes)
    if lengths is None:
        lengths = sorted({1, (length + 1) // 3, (2 * length) // 3, length - 1} - {0})
    bad = [t for t in lengths if not 1 <= t <= length]
    if bad or not lengths:
        raise ValueError(f"lengths must lie in 1..{length}; got {list(lengths)}.")
    whole = np.asarray(fn(*args))
    for t in lengths:
        out = fn(
            *(
                x if a is None else x[along(a, slice(0, t), jnp.ndim(x))]
                for x, a in zip(args, axes, strict=True)
            )
        )
        expected = whole[along(out_axis % whole.ndim, slice(0, t), whole.ndim)]
        fault = describe_mismatch(out, expected, *tolerances(whole.dtype, to_float64(expected), rtol, atol))
        if fault:
            raise AssertionError(
                f"the prefix of length {t} gives another output than the whole sequence: it {fault}."
            )
