"""Softmax attention, and the one place that chooses a backend."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn._checks import check_choice
from jaxattn.kernels._arguments import Arguments, check_arguments, query_is_valid, remove_keys
from jaxattn.kernels._blockwise import blockwise_attention
from jaxattn.kernels._xla import xla_attention

IMPLEMENTATIONS = (None, "xla", "blockwise")


def dot_product_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    *,
    key_bias: Float[Array, "*#B S #N"] | None = None,
    mask: Bool[Array, "*#B #N #T #S"] | None = None,
    bias: Float[Array, "*#B #N #T #S"] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "*B"] | None = None,
    key_value_seq_lengths: Int[Array, "*B"] | None = None,
    segment_ids: Int[Array, "*B T"] | tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None = None,
    implementation: str | None = None,
) -> Float[Array, "*B T N V"]:
    """Softmax attention over keys, with a bias a key."""
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    arguments = check_arguments(
        query,
        key,
        value,
        key_bias=key_bias,
        mask=mask,
        bias=bias,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        segment_ids=segment_ids,
    )
    out = attend(arguments, implementation)
    return out if jnp.ndim(query) == 4 else out[0]


def attend(a: Arguments, implementation: str | None) -> Array:
    """Runs checked arguments on `implementation`, or on the best one for this platform."""
    if implementation is None:
        implementation = _choose(a)
    a = remove_keys(a)
    out = xla_attention(a) if implementation == "xla" else blockwise_attention(a)
    return out if a.query_seq_lengths is None else jnp.where(query_is_valid(a), out, 0)


def attend_cached(a: Arguments) -> Array:
    """Runs checked arguments whose removed keys are zero already, with a causal offset."""
    return xla_attention(a) if _choose(a) == "xla" else blockwise_attention(a)


def _choose(a: Arguments) -> str:
    return "xla" if a.query.shape[1] * a.key.shape[1] <= 1024 * 1024 else "blockwise"
