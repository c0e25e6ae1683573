"""Rotary position embedding of queries and keys."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from jaxattn.core.checks import check_broadcastable, check_rank


def rotary(
    x: Float[Array, "*B T N H"], positions: Real[Array, "*#B T"] | None = None, *, base: float = 10000.0
) -> Float[Array, "*B T N H"]:
    """Rotates pairs of channels by the position, so that q·k depends on positions by their difference.

    (x_2i, x_2i+1) becomes (x_2i cos a − x_2i+1 sin a, x_2i sin a + x_2i+1 cos a) with a = p base^(-2i/H).
    Then rotary(q, m)·rotary(k, n) is a function of m − n alone. Apply it to both, not to the values.

    Args:
        x: queries or keys, (B, T, N, H) or (T, N, H), H even.
        positions: token positions, (T,) or (B, T); None for 0 … T − 1. Decoding passes its tokens' own.
        base: the longest wavelength is about 2 pi base.

    Returns:
        The rotated array, in the shape and dtype of `x`; angles and products are float32.

    Raises:
        ValueError: H is odd, `base` is not positive, or a shape is not one of those above.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn.positions import rotary
        >>> q, k = jnp.ones((1, 6, 2, 4)), jnp.ones((1, 6, 2, 4))
        >>> scores = jnp.einsum("btnh,bsnh->bnts", rotary(q), rotary(k))
        >>> bool(jnp.allclose(scores[0, 0, 5, 3], scores[0, 0, 2, 0], atol=1e-5))
        True

    Reference:
        Su et al., RoFormer, arXiv 2104.09864, equation 15.
    """
    check_rank("x", x, (3, 4), "(B, T, N, H) or (T, N, H)")
    *batch, length, _, width = x.shape
    if width % 2:
        raise ValueError(f"x must have an even last axis: channels rotate in pairs; got shape {x.shape}.")
    if base <= 0:
        raise ValueError(f"base must be positive; got {base}.")
    if positions is None:
        positions = jnp.arange(length)
    else:
        check_rank("positions", positions, (1, 2) if batch else (1,), "(T,) or (B, T)" if batch else "(T,)")
        target = (*batch, length) if positions.ndim == 2 else (length,)
        check_broadcastable("positions", positions, target, "(T,) or (B, T)")
    omega = jnp.asarray(base ** (-np.arange(0, width, 2) / width), jnp.float32)
    # angle: (T, 1, H/2) or (B, T, 1, H/2); the 1 is the head axis
    angle = jnp.asarray(positions, jnp.float32)[..., None, None] * omega
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], width // 2, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
