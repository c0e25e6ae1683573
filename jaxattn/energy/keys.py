"""Which keys remain under a token mask and a key bias, and how that bias is added to the gate."""

import functools
import operator

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxattn.core.checks import check_broadcastable, check_dtype
from jaxattn.energy.gate import broadcast_mask
from jaxattn.energy.statistics import kept


def valid_keys(
    token_mask: Array | None, key_bias: Array | None, energy: Array, *also: Bool[Array, "*#B #S #N"]
) -> Bool[Array, "*B S N"] | None:
    """The keys that remain, per head: in `token_mask`, not removed by `key_bias`, in all of `also`; None for all."""
    conditions = [broadcast_mask("token_mask", token_mask, energy), *also]
    if key_bias is not None:
        check_dtype("key_bias", key_bias, jnp.floating, "floating point")
        check_broadcastable("key_bias", key_bias, energy.shape, "(B, S, N)")
        conditions.append(key_bias != -jnp.inf)
    given = [jnp.broadcast_to(x, energy.shape) for x in conditions if x is not None]
    return functools.reduce(operator.and_, given) if given else None


def add_bias(gate: Array, key_bias: Array | None, valid: Array | None) -> Array:
    """gate + key_bias where valid; elsewhere `gate` is −inf already, whatever the bias."""
    return gate if key_bias is None else gate + kept(key_bias, valid).astype(gate.dtype)


def ungated(key_bias: Array | None, valid: Array | None) -> Array | None:
    """The key bias without a gate, −inf where not valid; None if there is none."""
    return None if valid is None else add_bias(jnp.where(valid, 0.0, -jnp.inf), key_bias, valid)
