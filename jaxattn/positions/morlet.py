"""The Morlet position encoding, and its Gaussian window as two extra columns of query and key."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from jaxattn.core.checks import check_broadcastable, check_choice, check_rank, check_shape
from jaxattn.core.pytree import serializable
from jaxattn.positions.sinusoidal import check_length, cos_sin_pairs

MAX_OMEGA = 0.95 * math.pi  # just below the Nyquist frequency of integer positions
MIN_SIGMA = 1e-3
MIN_CYCLES = 5.0  # with a smaller omega·sigma the wavelet is not admissible: its mean is not negligible


@serializable
class MorletParameters(NamedTuple):
    """Learned parameters of a Morlet encoding, one entry per (cos, sin) pair; `center` is None for windows at 0."""

    log_omega: Float[Array, " pairs"]
    log_sigma: Float[Array, " pairs"]
    center: Float[Array, " pairs"] | None


def morlet_init(dim: int, length: int, *, center: str = "origin") -> MorletParameters:
    """Initial values of a Morlet encoding: omega geometric from 1 to 0.99 pi, sigma = 5/omega.

    Args:
        dim: width of the encoding, even.
        length: number of positions that the centres are spread over.
        center: "origin" for windows centred at position 0, as published (all but the first ~20 positions then
            start with an encoding near 0); "learned" for one centre per pair, spread evenly over the context.

    Returns:
        `MorletParameters` of float32 arrays (dim/2,).

    Raises:
        ValueError: `dim` is odd or not positive, `length` is negative, or `center` is unknown.

    Examples:
        >>> from jaxattn.positions import morlet_encoding, morlet_init
        >>> log_omega, log_sigma, center = morlet_init(8, 100, center="learned")
        >>> center.tolist()
        [12.5, 37.5, 62.5, 87.5]
        >>> morlet_encoding(100, log_omega, log_sigma, center=center).shape
        (100, 8)

    Reference:
        Morlet positional encoding, arXiv 2606.01258.
    """
    check_length(length)
    check_choice("center", center, ("origin", "learned"))
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even and positive: it holds (cos, sin) pairs; got {dim}.")
    pairs = dim // 2
    log_omega = np.linspace(0.0, math.log(0.99 * math.pi), pairs)
    # Slightly wider than 5/omega: exactly on the bound, rounding would decide for each pair whether omega or sigma
    # gets the gradient.
    log_sigma = math.log(MIN_CYCLES) - log_omega + 1e-6
    centers = (np.arange(pairs) + 0.5) * length / pairs if center == "learned" else None
    return MorletParameters(
        jnp.asarray(log_omega, jnp.float32),
        jnp.asarray(log_sigma, jnp.float32),
        None if centers is None else jnp.asarray(centers, jnp.float32),
    )


def morlet_encoding(
    length: int,
    log_omega: Float[Array, " pairs"],
    log_sigma: Float[Array, " pairs"],
    *,
    center: Float[Array, " pairs"] | None = None,
) -> Float[Array, "length dim"]:
    r"""Cosines and sines of the position under Gaussian windows, to be added to the token embeddings.

    $$ PE_{p,2i} = \cos(\omega_i p)\, g_i(p), \quad PE_{p,2i+1} = \sin(\omega_i p)\, g_i(p), \qquad
       g_i(p) = e^{-(p - c_i)^2 / 2\sigma_i^2}, $$

    where omega = min(exp(log_omega), 0.95 pi), sigma = max(exp(log_sigma), 1e-3), and omega := 5/sigma wherever
    omega·sigma < 5.

    A centre moves the window only; the wave stays anchored at position 0. So with sigma → infinity (also with
    `log_sigma` infinite) this is exactly `sinusoidal_encoding` of the same omega, whatever the centres.

    Args:
        length: number of positions, 0 … length − 1.
        log_omega: logarithm of the angular frequency in radians per position, (d/2,).
        log_sigma: logarithm of the window's width in positions, (d/2,).
        center: the window's centre in positions, (d/2,); None for 0, as published.

    Returns:
        The encoding (length, d), float32.

    Raises:
        ValueError: `length` is negative, or the parameters are not vectors of equal length.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn.positions import morlet_encoding, sinusoidal_encoding
        >>> log_omega = jnp.array([0.0, -2.0])
        >>> wide = morlet_encoding(16, log_omega, jnp.full(2, jnp.inf))
        >>> bool((wide == sinusoidal_encoding(16, 4, omega=jnp.exp(log_omega))).all())
        True

    Reference:
        Morlet positional encoding, arXiv 2606.01258; centres other than 0 are an addition.
    """
    check_length(length)
    check_rank("log_omega", log_omega, (1,), "(d/2,)")
    pairs = log_omega.shape
    check_shape("log_sigma", log_sigma, pairs, "(d/2,), as log_omega")
    if center is not None:
        check_shape("center", center, pairs, "(d/2,), as log_omega")
    log_omega = jnp.asarray(log_omega, jnp.float32)
    # Clip before the exponential as well: min(exp(100), 0.95 pi) has the right value but the gradient 0·inf.
    omega = jnp.minimum(jnp.exp(jnp.minimum(log_omega, 2.0)), MAX_OMEGA)
    inverse_sigma = _inverse_sigma(log_sigma)
    omega = jnp.where(omega < MIN_CYCLES * inverse_sigma, MIN_CYCLES * inverse_sigma, omega)
    positions = jnp.arange(length, dtype=jnp.float32)
    distance = positions[:, None] - (0.0 if center is None else jnp.asarray(center, jnp.float32))
    window = jnp.exp(-0.5 * jnp.square(distance * inverse_sigma))  # (length, d/2)
    return cos_sin_pairs(positions, omega) * jnp.repeat(window, 2, axis=1)


def morlet_window(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    log_sigma: Float[Array, " N"],
    *,
    query_positions: Real[Array, "*#B T"] | None = None,
    key_positions: Real[Array, "*#B S"] | None = None,
    center: float | None = None,
    scale: float | None = None,
) -> tuple[Float[Array, "*B T N H+2"], Float[Array, "*B S K H+2"]]:
    r"""A Gaussian window on the distance between query and key, without a T×S bias.

    $$ -\frac{(m - n)^2}{2\sigma^2} = \frac{m n - n^2/2}{\sigma^2} - \frac{m^2}{2\sigma^2}, $$

    and the last term, common to all keys of a query, cancels in the softmax. What is left has rank 2: the query gains
    the columns m/sigma² and −1/(2 sigma²), divided by `scale`, and the key gains n and n². sigma is on the query
    side, so grouped keys serve heads with different sigma. Softmax attention over the returned arrays equals
    attention with that bias.

    Rounding: the two columns nearly cancel, so the logarithm of a weight inside the window is off by up to about
    (T/sigma)²/4 · 1.2e-7 in float32, and typically by half of that (0.03 at T/sigma = 1000). Keep the returned arrays
    in float32, and sigma above about T/1000.

    Args:
        query: (B, T, N, H) or (T, N, H).
        key: (B, S, K, H) or (S, K, H).
        log_sigma: logarithm of each query head's window width in positions, (N,); sigma = max(exp, 1e-3).
        query_positions: (T,) or (B, T); None for 0 … T − 1.
        key_positions: (S,) or (B, S); None for 0 … S − 1.
        center: subtracted from all positions; it affects rounding only, and is best in their middle. None for
            (S − 1)/2. Decoding with cached keys must pass the same number at every step, such as half the context.
        scale: the scale that the attention will use, None for 1/sqrt(H). Attention sees a width of H + 2 and would
            default to 1/sqrt(H + 2), so pass it this scale explicitly.

    Returns:
        The widened (query, key), float32.

    Raises:
        ValueError: a shape other than those above, or `scale` is 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import dot_product_attention
        >>> from jaxattn.positions import morlet_window
        >>> q = k = v = jnp.ones((1, 32, 2, 4))
        >>> q2, k2 = morlet_window(q, k, jnp.log(jnp.array([2.0, 8.0])))
        >>> dot_product_attention(q2, k2, v, scale=4**-0.5, is_causal=True).shape
        (1, 32, 2, 4)

    Reference:
        The window of arXiv 2606.01258, on relative rather than absolute positions.
    """
    check_rank("query", query, (3, 4), "(B, T, N, H) or (T, N, H)")
    check_rank("key", key, (query.ndim,), "(B, S, K, H), or (S, K, H) with an unbatched query")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"key must have the query's width H = {query.shape[-1]}; got shape {key.shape}.")
    check_shape("log_sigma", log_sigma, (query.shape[-2],), "(N,)")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(scale, int | float) and scale == 0:
        raise ValueError("scale must not be 0: the window's columns are divided by it.")
    center = (key.shape[-3] - 1) / 2 if center is None else center
    # m: (…, T, 1), n: (…, S, 1); the 1 is the head axis
    m = _positions("query_positions", query_positions, query.shape[:-2]) - center
    n = _positions("key_positions", key_positions, key.shape[:-2]) - center
    inverse_square = jnp.square(_inverse_sigma(log_sigma))
    query_columns = jnp.stack(
        [m * inverse_square, jnp.broadcast_to(-0.5 * inverse_square, query.shape[:-1])], axis=-1
    )
    key_columns = jnp.broadcast_to(jnp.stack([n, jnp.square(n)], axis=-1), (*key.shape[:-1], 2))
    return (
        jnp.concatenate([query.astype(jnp.float32), query_columns / scale], axis=-1),
        jnp.concatenate([key.astype(jnp.float32), key_columns], axis=-1),
    )


def _inverse_sigma(log_sigma: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1/max(exp(log_sigma), 1e-3); an infinite sigma gives 0 with a zero gradient, where 1/exp gives NaN."""
    return jnp.exp(-jnp.maximum(jnp.asarray(log_sigma, jnp.float32), math.log(MIN_SIGMA)))


def _positions(name: str, positions: Array | None, leading: tuple[int, ...]) -> Float[Array, "*B L 1"]:
    """`positions` (or 0 … L − 1) in float32 with the axes `leading`, (B, L) or (L,), and a head axis."""
    if positions is None:
        positions = jnp.arange(leading[-1])
    check_rank(name, positions, (1, len(leading)), "(L,) or (B, L)")
    check_broadcastable(name, positions, leading[-positions.ndim :], "(L,) or (B, L)")
    return jnp.broadcast_to(jnp.asarray(positions, jnp.float32), leading)[..., None]
