"""Absolute position encodings, added to the token embedding."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.core.checks import check_choice
from jaxattn.core.parameters import axis_names, parameter
from jaxattn.positions import morlet_encoding, morlet_init, sinusoidal_encoding


class _Table(nnx.Module):
    """Adds row p of a table to the embedding at position p."""

    length: int

    def table(self) -> Float[Array, "L D"]:
        """The encodings of positions 0 to length − 1."""
        raise NotImplementedError("a subclass computes the table")

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "*#B T"] | None = None
    ) -> Float[Array, "B T D"]:
        """x plus the encoding of its positions.

        Args:
            x: token embeddings.
            positions: positions in tokens, each below `length`; None for 0 to T − 1. A traced position beyond
                `length` gives NaN, since no error can be raised then.

        Raises:
            ValueError: `positions` is None and x is longer than `length`.
        """
        table = self.table().astype(x.dtype)
        if positions is not None:
            return x + table.at[positions].get(mode="fill", fill_value=jnp.nan)
        if x.shape[1] > self.length:
            raise ValueError(f"x must have at most {self.length} positions; got {x.shape[1]}.")
        return x + table[: x.shape[1]]


class LearnedPositions(_Table):
    """One learned vector a position.

    Args:
        length: number of positions.
        features: width D.
        std: standard deviation of the initial values.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import LearnedPositions
        >>> positions = LearnedPositions(16, 8, rngs=nnx.Rngs(0))
        >>> bool((positions(jnp.zeros((1, 5, 8)))[0, 3] == positions.embedding[3]).all())
        True
    """

    def __init__(
        self, length: int, features: int, *, std: float = 0.02, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        self.length = length
        init = nnx.initializers.normal(std)
        self.embedding = parameter(init, rngs.params(), (length, features), ("length", "embed"), param_dtype)

    def table(self) -> Float[Array, "L D"]:
        """The learned table."""
        return self.embedding[...]


class SinusoidalPositions(_Table):
    """The fixed sinusoidal encoding; see `jaxattn.sinusoidal_encoding`.

    Args:
        length: number of positions.
        features: width D.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn.nn import SinusoidalPositions
        >>> SinusoidalPositions(16, 4)(jnp.zeros((1, 5, 4)))[0, 0]  # cosines and sines of 0
        Array([1., 0., 1., 0.], dtype=float32)
    """

    def __init__(self, length: int, features: int):
        self.length = length
        self.features = features

    def table(self) -> Float[Array, "L D"]:
        """The encodings, computed anew (a constant under jit)."""
        return sinusoidal_encoding(self.length, self.features)


class MorletPositionalEncoding(_Table):
    """Waves in learned Gaussian windows; see `jaxattn.morlet_encoding`.

    Args:
        length: number of positions.
        features: width D, even.
        center: "origin" puts every window at position 0, as published, so that all but the first few positions
            start with an encoding near 0; "learned" spreads learned centres over the positions.

    Raises:
        ValueError: an unknown `center`, or an odd width.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn.nn import MorletPositionalEncoding
        >>> encoding = MorletPositionalEncoding(64, 8)(jnp.zeros((1, 64, 8)))[0]
        >>> float(abs(encoding[0]).max()), bool(abs(encoding[-1]).max() < 1e-3)  # windows at the origin have passed
        (1.0, True)

    Reference: arXiv 2606.01258, Morlet positional encoding.
    """

    def __init__(self, length: int, features: int, *, center: str = "origin"):
        check_choice("center", center, ("origin", "learned"))
        self.length = length
        start = morlet_init(features, length, center=center)

        def kept(value: Array) -> nnx.Param:
            return nnx.Param(value, **axis_names(None))

        self.log_omega = kept(start.log_omega)
        self.log_sigma = kept(start.log_sigma)
        self.center = nnx.data(None if start.center is None else kept(start.center))

    def table(self) -> Float[Array, "L D"]:
        """The encodings of positions 0 to length − 1."""
        center = None if self.center is None else self.center[...]
        return morlet_encoding(self.length, self.log_omega[...], self.log_sigma[...], center=center)
