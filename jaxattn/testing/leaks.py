"""Which output positions depend on which input positions, and where that is the future."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.testing.arguments import (
    Axes,
    along,
    argument_labels,
    common_length,
    other_content,
    sequence_axes,
    to_float64,
)


@dataclasses.dataclass(frozen=True)
class LeakReport:
    """What `find_leaks` measured.

    Attributes:
        change: (T, S), the largest change of output position i when input position j was replaced; NaN where the
            output became NaN.
    """

    change: np.ndarray

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later input."""
        return self.lookahead == 0

    @property
    def lookahead(self) -> int:
        """The furthest that an output looks ahead, max(j − i) over dependent pairs; 0 for a causal function.

        A convolution with the wrong padding has a small one, a statistic of the whole sequence T − 1.
        """
        outputs, inputs = np.nonzero(self.change != 0)  # NaN counts
        return int((inputs - outputs).max(initial=0))

    def __str__(self) -> str:
        """A row an output position: "x" depends on an earlier or the same input, "!" on a later one, "." not."""
        later = np.arange(self.change.shape[1]) > np.arange(self.change.shape[0])[:, None]
        symbols = np.where(self.change == 0, ".", np.where(later, "!", "x"))
        verdict = (
            "causal: no output depends on a later input"
            if self.causal
            else f"not causal: outputs look up to {self.lookahead} positions ahead, "
            f"largest change {np.nanmax(np.where(later, self.change, 0.0)):.3g}"
        )
        return "\n".join([verdict, *("".join(row) for row in symbols)])


def find_leaks(
    fn: Callable[..., Any],
    args: Sequence[Any],
    *,
    axis: Axes = 1,
    out_axis: int = 1,
    atol: float = 0.0,
    seed: int = 0,
) -> LeakReport:
    """Replaces the input one position at a time and records which outputs change.

    `assert_causal` answers whether something leaks and is the one for test suites; this shows where, on a short
    sequence, calling `fn` once for each position. `fn` may be anything that maps arrays to one array: a function, an
    NNX model, `lambda x: linen_model.apply(variables, x)`, `jax.vmap(equinox_model)`.

    Args:
        fn: function of the arrays in `args` which returns one array.
        args: the arrays to call it with; those with a sequence axis are replaced together and have one length S.
        axis: sequence axis of the arguments: one integer, or one entry for each, None for what is not a
            sequence.
        out_axis: sequence axis of the output, of length T.
        atol: largest change that counts as none; raise it for what is causal only to rounding, such as an FFT.
        seed: random seed of the replacement values.

    Returns:
        A `LeakReport`; printed, it draws the (T, S) dependencies.

    Raises:
        ValueError: if the sequence arguments differ in length.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.testing import find_leaks
        >>> x = jax.random.normal(jax.random.key(0), (1, 5, 2))
        >>> def centred(x):  # a convolution of width 3 with the padding of an encoder
        ...     x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        ...     return x[:, :-2] + x[:, 1:-1] + x[:, 2:]
        >>> print(find_leaks(centred, (x,)))  # doctest: +ELLIPSIS
        not causal: outputs look up to 1 positions ahead, largest change ...
        x!...
        xx!..
        .xx!.
        ..xx!
        ...xx
    """
    labels, axes = argument_labels(fn, len(args)), sequence_axes(axis, args)
    host = [np.asarray(x) for x in args]
    length = common_length(args, axes)
    rng = np.random.default_rng(seed)
    content = [
        x if a is None else other_content(rng, x, 1.0, label)
        for x, a, label in zip(host, axes, labels, strict=True)
    ]
    whole = to_float64(fn(*args))
    others = tuple(k for k in range(whole.ndim) if k != out_axis % whole.ndim)
    columns = []
    for j in range(length):
        changed = [x.copy() for x in host]
        for x, new, a in zip(changed, content, axes, strict=True):
            if a is not None:
                at = along(a, slice(j, j + 1), x.ndim)
                x[at] = new[at]
        difference = np.abs(to_float64(fn(*map(jnp.asarray, changed))) - whole).max(axis=others)
        columns.append(np.where(difference <= atol, 0.0, difference))
    return LeakReport(np.stack(columns, axis=1))
