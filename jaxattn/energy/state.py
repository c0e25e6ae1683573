"""Decoding steps of energy-gated attention, over a cache of keys, values and energies."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import check_choice
from jaxattn.core.decode import check_step, finish, num_new, write
from jaxattn.core.explicit import automatic_axes, but_width, same
from jaxattn.core.pytree import serializable
from jaxattn.energy.gate import (
    NORMALIZATIONS,
    PerHead,
    check_energy,
    clean_energy,
    continue_statistics,
    energy_gate_init_state,
    energy_gate_step,
)
from jaxattn.energy.keys import add_bias, ungated, valid_keys
from jaxattn.energy.prefix import attend_to_prefixes
from jaxattn.energy.statistics import Statistics
from jaxattn.softmax import (
    DotProductAttentionState,
    dot_product_attention_init_state,
    dot_product_attention_step,
)


@serializable
class EnergyGatedAttentionState(NamedTuple):
    """The key-value cache, the energies of its positions (B, max_length, N), and their statistics so far."""

    attention: DotProductAttentionState
    energy: Float[Array, "B S N"]
    statistics: Statistics


def energy_gated_attention_init_state(
    batch: int,
    max_length: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    num_heads: int | None = None,
    value_dim: int | None = None,
    dtype: Any = jnp.float32,
) -> EnergyGatedAttentionState:
    """An empty cache for `energy_gated_attention_step`, the same for all normalisations.

    Args:
        batch: sequences decoded together, B.
        max_length: positions the cache can hold.
        num_kv_heads: key/value heads, K.
        head_dim: width of queries and keys, H.
        num_heads: query heads, N, a multiple of K; K when None.
        value_dim: width of the values, `head_dim` when None.
        dtype: dtype of the cached keys and values; energies are float32.

    Returns:
        A pytree of fixed shapes.

    Raises:
        ValueError: a size is not positive, or `num_heads` is not a multiple of `num_kv_heads`.

    Examples:
        >>> from jaxattn import energy_gated_attention_init_state
        >>> energy_gated_attention_init_state(2, 16, 1, 8, num_heads=4).energy.shape
        (2, 16, 4)
    """
    num_heads = num_kv_heads if num_heads is None else num_heads
    return EnergyGatedAttentionState(
        dot_product_attention_init_state(
            batch, max_length, num_kv_heads, head_dim, num_heads=num_heads, value_dim=value_dim, dtype=dtype
        ),
        jnp.zeros((batch, max_length, num_heads), jnp.float32),
        energy_gate_init_state(batch, num_heads),
    )


@automatic_axes(same, but_width)
def energy_gated_attention_step(
    state: EnergyGatedAttentionState,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K V"],
    energy: Float[Array, "B T N"],
    *,
    alpha: PerHead,
    tau: PerHead,
    normalization: str | None = "running",
    token_mask: Bool[Array, "B T"] | None = None,
    key_bias: Float[Array, "#B T #N"] | None = None,
    scale: float | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    logits_soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    query_seq_lengths: Int[Array, " B"] | None = None,
) -> tuple[EnergyGatedAttentionState, Float[Array, "B T N V"]]:
    """Appends T new tokens and attends from them, causally; any split gives the causal whole.

    "prefix" recomputes the gates of all cached keys for every query. "sequence" cannot know the tokens to come, so it
    computes what "prefix" computes, which is what a model trained with "sequence" faces in generation.

    Args:
        state: from `energy_gated_attention_init_state` or the step before.
        query: (B, T, N, H), T >= 1 new tokens.
        key: (B, T, K, H).
        value: (B, T, K, V).
        energy: energies of the new tokens, (B, T, N).
        alpha: as in `energy_gated_attention`.
        tau: as in `energy_gated_attention`.
        normalization: one name for all steps: "running", "sequence", "prefix" or None.
        token_mask: True at real tokens among the new ones, (B, T).
        key_bias: bias on the new keys, broadcastable to (B, T, N); −inf removes a key for good.
        scale: factor on q·k, 1/sqrt(H) when None; the same in every step.
        local_window_size: as in `dot_product_attention_step`; the same in every step.
        logits_soft_cap: as in `dot_product_attention`.
        sinks: as in `dot_product_attention`.
        query_seq_lengths: (B,) int, how many of the T tokens each sequence has; see `dot_product_attention_step`.

    Returns:
        (new state, output (B, T, N, V) in the query's dtype); NaN beyond `max_length` tokens.

    Raises:
        ValueError: a wrong shape, dtype or name.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import energy_gated_attention_init_state, energy_gated_attention_step
        >>> state = energy_gated_attention_init_state(1, 8, 2, 4)
        >>> x = jnp.ones((1, 3, 2, 4))
        >>> state, out = energy_gated_attention_step(state, x, x, x, jnp.ones((1, 3, 2)), alpha=2.0, tau=0.0)
        >>> out.shape, state.attention.length.tolist()
        ((1, 3, 2, 4), [3])
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    call = check_step(query, key, value, None, scale, query_seq_lengths)
    check_energy(energy, query.shape[:-1], "(B, T, N)", alpha, tau)
    counted = jnp.arange(query.shape[1]) < jnp.reshape(num_new(call), (-1, 1))
    valid = valid_keys(token_mask, key_bias, energy, counted[..., None])
    energy = clean_energy(energy, valid)
    start = state.attention.length
    energies = write(state.energy, energy, start, num_new(call))
    options: dict[str, Any] = {
        "scale": scale,
        "local_window_size": local_window_size,
        "logits_soft_cap": logits_soft_cap,
        "sinks": sinks,
    }
    attend = partial(
        dot_product_attention_step,
        state.attention,
        query,
        key,
        value,
        query_seq_lengths=query_seq_lengths,
        **options,
    )
    if normalization in ("running", None):
        statistics, gate = energy_gate_step(
            state.statistics, energy, alpha=alpha, tau=tau, normalization=normalization, mask=valid
        )
        cache, out = attend(key_bias=add_bias(gate, key_bias, valid))
        return EnergyGatedAttentionState(cache, energies, statistics), out
    # For the new cache only: jit drops the ungated attention, which nothing uses.
    cache, _ = attend(key_bias=ungated(key_bias, valid))
    statistics = continue_statistics(state.statistics, energy, valid)
    out = attend_to_prefixes(
        query,
        cache.key,
        cache.value,
        energies,
        statistics,
        start[:, None] + jnp.arange(query.shape[1]),
        alpha=alpha,
        tau=tau,
        key_bias=cache.key_bias,
        **options,
    )
    out = finish(call, out.reshape(*call.query.shape[:4], -1), cache.length, cache.key.shape[1])
    return EnergyGatedAttentionState(cache, energies, jax.tree.map(lambda s: s[:, -1], statistics)), out
