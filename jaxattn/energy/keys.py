"""Which keys remain under a token mask and a key bias, and how that bias is added to the gate."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxattn.core.checks import check_broadcastable, check_dtype
from jaxattn.energy.gate import broadcast_mask


def valid_keys(token_mask: Array | None, key_bias: Array | None, energy: Array) -> Bool[Array, "*B S N"]:
    """The keys that remain, per head: in `token_mask`, and not removed by `key_bias`."""
    valid = broadcast_mask("token_mask", token_mask, energy)
    if key_bias is None:
        return valid
    check_dtype("key_bias", key_bias, jnp.floating, "floating point")
    check_broadcastable("key_bias", key_bias, energy.shape, "(B, S, N)")
    return valid & (key_bias != -jnp.inf)


def add_bias(gate: Array, key_bias: Array | None, valid: Array) -> Array:
    """gate + key_bias where valid; elsewhere `gate` is −inf already, whatever the bias."""
    return gate if key_bias is None else gate + jnp.where(valid, key_bias, 0).astype(gate.dtype)
