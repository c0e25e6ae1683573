"""Rotary position embedding of queries and keys."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from jaxattn.core.checks import check_broadcastable, check_choice, check_rank


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The options of `rotary` as one value, for layers that apply it.

    Args:
        base: the longest wavelength is about 2 pi base.
        pairing: "interleaved" or "half".
        rotary_dim: number of rotated channels; None for all.
        linear_factor: divides the positions.
        ntk_factor: stretches long wavelengths.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn.positions import Rotary
        >>> x = jnp.arange(8.0).reshape(2, 1, 4)
        >>> Rotary(rotary_dim=2)(x)[..., 2:] == x[..., 2:]
        Array([[[ True,  True]],
        <BLANKLINE>
               [[ True,  True]]], dtype=bool)
    """

    base: float = 10000.0
    pairing: str = "interleaved"
    rotary_dim: int | None = None
    linear_factor: float = 1.0
    ntk_factor: float = 1.0

    def __call__(
        self, x: Float[Array, "*B T N H"], positions: Real[Array, "*#B T"] | None = None
    ) -> Float[Array, "*B T N H"]:
        """`rotary` of queries or keys with these options."""
        return rotary(x, positions, **dataclasses.asdict(self))


def rotary(
    x: Float[Array, "*B T N H"],
    positions: Real[Array, "*#B T"] | None = None,
    *,
    base: float = 10000.0,
    pairing: str = "interleaved",
    rotary_dim: int | None = None,
    linear_factor: float = 1.0,
    ntk_factor: float = 1.0,
) -> Float[Array, "*B T N H"]:
    """Rotates pairs of channels by angles proportional to position, so that q·k depends on m − n only.

    At position p, pair i of the first R channels, (a, b), becomes (a cos t − b sin t, a sin t + b cos t) with
    t = p base^(−2i/R). Then rotary(q, m)·rotary(k, n) is a function of m − n alone. Apply it to queries and keys, not
    to values.

    Args:
        x: queries or keys, (B, T, N, H) or (T, N, H), H even.
        positions: token positions, (T,), or (B, T) for one row per sequence; None for 0 … T − 1. In decoding, those
            of the new tokens.
        base: the longest wavelength is about 2 pi base.
        pairing: "interleaved" pairs channels 2i and 2i + 1, as published; "half" pairs i and i + R/2, as most
            checkpoints do (Llama, GPT-NeoX, ModernBERT). They differ by a permutation of the channels.
        rotary_dim: R, even; the other channels are left as they are. None for H.
        linear_factor: divides the positions (position interpolation).
        ntk_factor: multiplies `base` by ntk_factor^(R/(R − 2)), which stretches long wavelengths and leaves the
            shortest as it is. The dynamic scaling of transformers, with factor f at T tokens for a model trained at
            L, is ntk_factor = max(1, f T/L − (f − 1)).

    Returns:
        The rotated array, in the shape and dtype of `x`; angles and products are float32.

    Raises:
        ValueError: H or R is odd, R exceeds H, a base or factor is not positive, an unknown pairing, or a shape other
            than those above.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn.positions import rotary
        >>> q, k = jnp.ones((1, 6, 2, 4)), jnp.ones((1, 6, 2, 4))
        >>> scores = jnp.einsum("btnh,bsnh->bnts", rotary(q), rotary(k))
        >>> bool(jnp.allclose(scores[0, 0, 5, 3], scores[0, 0, 2, 0], atol=1e-5))
        True

    Reference:
        Su et al., RoFormer, arXiv 2104.09864, equation 15; position interpolation is arXiv 2306.15595.
    """
    check_rank("x", x, (3, 4), "(B, T, N, H) or (T, N, H)")
    *batch, length, _, width = x.shape
    if width % 2:
        raise ValueError(f"x must have an even last axis: channels rotate in pairs; got shape {x.shape}.")
    size = width if rotary_dim is None else rotary_dim
    if size % 2 or not 0 < size <= width:
        raise ValueError(f"rotary_dim must be even and between 2 and H = {width}; got {rotary_dim}.")
    check_choice("pairing", pairing, ("interleaved", "half"))
    for name, value in (("base", base), ("linear_factor", linear_factor), ("ntk_factor", ntk_factor)):
        if value <= 0:
            raise ValueError(f"{name} must be positive; got {value}.")
    if positions is None:
        positions = jnp.arange(length)
    else:
        check_rank("positions", positions, (1, 2) if batch else (1,), "(T,) or (B, T)" if batch else "(T,)")
        target = (*batch, length) if positions.ndim == 2 else (length,)
        check_broadcastable("positions", positions, target, "(T,) or (B, T)")
    exponents = np.arange(0, size, 2) / size
    # base^(−2i/R) with the stretched base; the first exponent is 0, also for R = 2.
    omega = base**-exponents * ntk_factor ** (-exponents * size / max(size - 2, 1)) / linear_factor
    # angle: (T, 1, R/2) or (B, T, 1, R/2); the 1 is the head axis
    angle = jnp.asarray(positions, jnp.float32)[..., None, None] * jnp.asarray(omega, jnp.float32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    axis, shape = (-1, (size // 2, 2)) if pairing == "interleaved" else (-2, (2, size // 2))
    pairs = x[..., :size].astype(jnp.float32).reshape(*x.shape[:-1], *shape)
    first, second = jnp.moveaxis(pairs, axis, 0)
    rotated = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=axis)
    rotated = rotated.reshape(*x.shape[:-1], size).astype(x.dtype)
    return rotated if size == width else jnp.concatenate([rotated, x[..., size:]], axis=-1)
