"""Padding: as a key bias of −inf, zeroed so that a NaN in it reaches nothing, or made of the last entry."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxattn.core.call import Call, accumulation_dtype


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


def repeat_last(x: Array, count: int, axis: int) -> Array:
    """`x` with the last entry of one axis repeated `count` more times.

    `jnp.pad(mode="edge")` slices the other axes too, which moves data where those are cut among devices.
    """
    last = lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
    return jnp.concatenate([x, jnp.repeat(last, count, axis=axis)], axis=axis)


def fold_key_mask(call: Call) -> Call:
    """Turns a mask that is the same for every query into a key bias of −inf."""
    mask = call.mask
    if mask is None or mask.shape[3] != 1 or mask.shape[4] != call.key.shape[1]:
        return call
    return _keep(call.replace(mask=None), jnp.moveaxis(mask[:, :, :, 0], 3, 1))


def fold_lengths(call: Call) -> Call:
    """Turns key_value_seq_lengths into a key bias of −inf."""
    lengths = call.key_value_seq_lengths
    if lengths is None:
        return call
    kept = jnp.arange(call.key.shape[1]) < lengths[:, None]
    return _keep(call.replace(key_value_seq_lengths=None), kept[:, :, None, None])


def _keep(call: Call, kept: Bool[Array, "#B S #K #G"]) -> Call:
    bias = jnp.zeros((), accumulation_dtype(call.query)) if call.key_bias is None else call.key_bias
    return call.replace(key_bias=jnp.where(kept, bias, -jnp.inf))


def zero_padding(call: Call) -> Call:
    """Zeroes the keys, values and queries that a key bias of −inf or a length removes.

    It is a `where` on the arrays themselves, so that a NaN in padding meets no multiplication, forward or
    backward. A key removed for some query heads of a group only must be finite: the others need it.
    """
    key_bias = fold_lengths(call).key_bias
    if key_bias is not None:
        removed = (key_bias == -jnp.inf).all(axis=3, keepdims=True)
        call = call.replace(key=jnp.where(removed, 0, call.key), value=jnp.where(removed, 0, call.value))
        if call.key_bias is not None:
            call = call.replace(key_bias=key_bias)
    if call.query_seq_lengths is not None:
        call = call.replace(query=jnp.where(query_is_valid(call), call.query, 0))
    return call


def zero_padded_rows(call: Call, out: Array) -> Array:
    """(B, T, K, G, V) outputs, 0 in padded query rows."""
    return out if call.query_seq_lengths is None else jnp.where(query_is_valid(call), out, 0)


def query_is_valid(call: Call) -> Bool[Array, "B T 1 1 1"]:
    """False for padded query rows."""
    valid = jnp.arange(call.query.shape[1]) < call.query_seq_lengths[:, None]
    return valid[:, :, None, None, None]
