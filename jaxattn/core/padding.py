"""Padding as a key bias."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def padding_key_bias(
    token_mask: Bool[Array, "*B S"] | None, key_bias: Float[Array, "*#B S #N"] | None = None
) -> Float[Array, "*B S _"] | None:
    """Turns a token mask into a key bias: −inf where `token_mask` is False, `key_bias` (or 0) elsewhere.

    Args:
        token_mask: True at real tokens, False at padding; None for no padding.
        key_bias: a bias to keep at the real tokens, added to their scores in log space.

    Returns:
        The combined key bias, with a head axis of 1 if none was given; None if both arguments are None.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import padding_key_bias
        >>> padding_key_bias(jnp.array([[True, True, False]]))[0, :, 0].tolist()
        [0.0, 0.0, -inf]
    """
    if token_mask is None:
        return key_bias
    # `where`, not a sum: a NaN bias at a padded token is dropped with the token.
    return jnp.where(token_mask[..., None], 0.0 if key_bias is None else key_bias, -jnp.inf)
