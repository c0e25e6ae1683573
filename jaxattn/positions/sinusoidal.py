"""The sinusoidal position encoding."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxattn.core.checks import check_rank, check_shape


def sinusoidal_encoding(
    length: int, dim: int, *, omega: Float[Array, " pairs"] | None = None
) -> Float[Array, "length dim"]:
    r"""Cosines and sines of the position, to be added to the token embeddings.

    $$ PE_{p,2i} = \cos(\omega_i p), \quad PE_{p,2i+1} = \sin(\omega_i p), \qquad \omega_i = 10000^{-2i/dim}. $$

    Pairs are ordered (cos, sin), the usual encoding with the members of every pair swapped, so that the Morlet
    encoding tends to exactly this one as its windows widen. To a linear layer the order makes no difference.

    Args:
        length: number of positions, 0 … length − 1.
        dim: width of the encoding, even.
        omega: angular frequencies in radians per position, (dim/2,); None for those above.

    Returns:
        The encoding (length, dim), float32.

    Raises:
        ValueError: `dim` is odd or not positive, `length` is negative, or `omega` has another shape.

    Examples:
        >>> from jaxattn.positions import sinusoidal_encoding
        >>> sinusoidal_encoding(8, 4)[0].tolist()
        [1.0, 0.0, 1.0, 0.0]

    Reference:
        Vaswani et al., Attention Is All You Need, arXiv 1706.03762, section 3.5.
    """
    check_length(length)
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even and positive: it holds (cos, sin) pairs; got {dim}.")
    if omega is None:
        omega = jnp.asarray(10000.0 ** (-np.arange(0, dim, 2) / dim), jnp.float32)
    check_rank("omega", omega, (1,), "(dim/2,)")
    check_shape("omega", omega, (dim // 2,), "(dim/2,)")
    return cos_sin_pairs(jnp.arange(length, dtype=jnp.float32), omega)


def cos_sin_pairs(
    positions: Float[Array, " length"], omega: Float[Array, " pairs"]
) -> Float[Array, "length dim"]:
    """The columns cos(omega_0 p), sin(omega_0 p), cos(omega_1 p), … in float32."""
    angle = positions[:, None] * jnp.asarray(omega, jnp.float32)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1).reshape(angle.shape[0], 2 * angle.shape[1])


def check_length(length: int) -> None:
    """Raises unless `length` counts positions."""
    if length < 0:
        raise ValueError(f"length must not be negative; got {length}.")
