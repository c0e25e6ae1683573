"""ALiBi: scores that fall linearly with distance, as a key bias of causal attention."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxattn.core.checks import check_shape


def alibi_slopes(num_heads: int) -> Float[np.ndarray, " N"]:
    """The published slopes: 2^(−8/N), 2^(−16/N), …, 2^(−8) where N is a power of two.

    For another N, the slopes of the next smaller power of two P are followed by every second one of those for 2P.

    Args:
        num_heads: query heads N.

    Returns:
        (N,), a NumPy array.

    Raises:
        ValueError: no heads.

    Examples:
        >>> alibi_slopes(4).tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]

    Reference: Press et al. 2022, "Train short, test long", section 3.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1; got {num_heads}.")
    power = 2 ** math.floor(math.log2(num_heads))

    def geometric(count: int) -> np.ndarray:
        return 2.0 ** (-8.0 / count * np.arange(1, count + 1))

    return np.concatenate([geometric(power), geometric(2 * power)[::2][: num_heads - power]])


def alibi_key_bias(
    positions: Int[Array, "*B S"], slopes: Float[Array, " N"] | Float[np.ndarray, " N"]
) -> Float[Array, "*B S N"]:
    """Attention with linear biases, −m (i − j) added to the score of query i and key j, as the key bias m j.

    The two differ by m i, which is the same for all keys of a query and cancels in the softmax, as long as no key
    lies behind its query: use it with `is_causal=True` only. (The symmetric form, −m |i − j|, is no key bias.)

    Args:
        positions: (B, S) or (S,) position of every key, in tokens.
        slopes: (N,) slope m of every query head, such as `alibi_slopes(N)`.

    Returns:
        The key bias, float32, (B, S, N) or (S, N).

    Raises:
        ValueError: slopes are not (N,).

    Examples:
        >>> import jax, jax.numpy as jnp, jaxattn
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
        >>> slopes = jaxattn.alibi_slopes(2)
        >>> bias = jaxattn.alibi_key_bias(jnp.arange(6), slopes)[None]
        >>> out = jaxattn.dot_product_attention(q, k, v, key_bias=bias, is_causal=True)
        >>> distance = jnp.arange(6)[:, None] - jnp.arange(6)
        >>> pairs = -jnp.asarray(slopes)[None, :, None, None] * distance
        >>> bool(jnp.allclose(out, jaxattn.dot_product_attention(q, k, v, bias=pairs, is_causal=True), atol=1e-5))
        True

    Reference: Press et al. 2022, "Train short, test long", section 3.
    """
    check_shape("slopes", slopes, (jnp.size(slopes),), "(N,)")
    return jnp.asarray(positions, jnp.float32)[..., None] * jnp.asarray(slopes, jnp.float32)
