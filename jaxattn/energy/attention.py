"""Energy-gated softmax attention with every normalisation, whole and one call at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import check_broadcastable, check_choice, check_dtype, check_rank, check_shape
from jaxattn.energy.gate import (
    NORMALIZATIONS,
    broadcast_mask,
    check_gate_parameters,
    check_leak,
    clean_energy,
    continue_statistics,
    energy_gate,
    energy_gate_init_state,
    energy_gate_step,
    is_causal_mask,
)
from jaxattn.energy.prefix import attend_to_prefixes
from jaxattn.energy.statistics import Statistics, prefix_statistics
from jaxattn.softmax.attention import dot_product_attention
from jaxattn.softmax.cache import (
    DotProductAttentionState,
    dot_product_attention_init_state,
    dot_product_attention_step,
)


def energy_gated_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    energy: Float[Array, "*B S N"],
    *,
    alpha: Float[Array, "#N"] | Float[Array, ""] | float,
    tau: Float[Array, "#N"] | Float[Array, ""] | float,
    normalization: str | None = "running",
    token_mask: Bool[Array, "*B S"] | None = None,
    mask: Bool[Array, "*#B #N #T #S"] | None = None,
    key_bias: Float[Array, "*#B S #N"] | None = None,
    bias: Float[Array, "*#B #N #T #S"] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    segment_ids: Int[Array, "*B T"] | tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None = None,
    allow_leak: bool = False,
    implementation: str | None = None,
) -> Float[Array, "*B T N V"]:
    """Softmax attention whose weights are multiplied by a gate of the key token's energy and renormalised.

    A_ij = p_ij g_ij / sum_j' p_ij' g_ij' = softmax_j(s q_i·k_j + log g_ij), g_ij = sigmoid(alpha (z_ij − tau)),
    z_ij = (e_j − mu)/sigma with statistics over all tokens ("sequence"), the tokens <= j ("running"), the tokens
    <= i ("prefix"), or z = e (None). Under "prefix" query i sees the published formula applied to the prefix
    that ends with it; the gate then depends on i and j, and is built for a few hundred queries at a time, never
    T×S at once. All the others are one number a key and cost what plain attention costs.

    Args:
        query: (B, T, N, H), or without B, as are all others then.
        key: (B, S, K, H), K dividing N.
        value: (B, S, K, V).
        energy: energies of the key tokens for every query head, (B, S, N), any float dtype.
        alpha: steepness of the gate, (N,) or a scalar.
        tau: the z at which the gate is half open, (N,) or a scalar.
        normalization: "running", "sequence", "prefix" or None.
        token_mask: True at real tokens, (B, S). The others are not attended to and enter no statistics, NaN or not;
            queries are not changed by it, so what a padded query holds shows in its own row.
        mask: True where query i may attend to key j, broadcastable to (B, N, T, S). It does not
            change the statistics.
        key_bias: more bias on the keys, broadcastable to (B, S, N); −inf removes a key, also from the statistics.
        bias: bias on the scores, broadcastable to (B, N, T, S).
        scale: factor on q·k, 1/sqrt(H) when None.
        is_causal: query i attends to keys j <= i.
        segment_ids: (B, T), or a pair (B, T) and (B, S), for packed sequences, each a contiguous run; attention
            and statistics stay inside them.
        allow_leak: permits "sequence" with `is_causal`, for reproducing the published numbers.
        implementation: a backend of `dot_product_attention`.

    Returns:
        (B, T, N, V) in the query's dtype; a row with no key left is 0.

    Raises:
        ValueError: a wrong shape, dtype or name; "sequence" with `is_causal` and not `allow_leak`; "prefix"
            without `is_causal` or with T != S.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxattn import energy_gated_attention
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
        >>> energy = jax.random.normal(jax.random.key(1), (2, 16, 4))
        >>> energy_gated_attention(q, k, v, energy, alpha=2.0, tau=0.0, is_causal=True).shape
        (2, 16, 4, 8)

    Reference:
        Energy-gated attention, arXiv 2605.21842 and 2605.26355; "running" and "prefix" are its causal forms.
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_leak(normalization, is_causal or is_causal_mask(mask), allow_leak)
    check_rank("query", query, (3, 4), "(B, T, N, H) or (T, N, H)")
    check_rank("key", key, (query.ndim,), "(B, S, K, H), or (S, K, H) with an unbatched query")
    num_heads = query.shape[-2]
    check_shape("energy", energy, (*key.shape[:-2], num_heads), "(B, S, N)")
    check_dtype("energy", energy, jnp.floating, "floating point")
    check_gate_parameters(alpha, tau, num_heads)
    valid = _valid_keys(token_mask, key_bias, energy)
    pair = segment_ids if isinstance(segment_ids, tuple | list) else (segment_ids, segment_ids)
    if normalization != "prefix":
        gate = energy_gate(
            energy,
            alpha=alpha,
            tau=tau,
            normalization=normalization,
            mask=valid,
            segment_ids=pair[-1],
            is_causal=is_causal,
            allow_leak=allow_leak,
        )
        return dot_product_attention(
            query,
            key,
            value,
            key_bias=_add_bias(gate, key_bias, valid),
            mask=mask,
            bias=bias,
            scale=scale,
            is_causal=is_causal,
            segment_ids=segment_ids,
            implementation=implementation,
        )
    if not is_causal:
        raise ValueError(
            "is_causal must be True with normalization 'prefix': query i takes its statistics from the tokens "
            "<= i. Without a causal mask use 'sequence'."
        )
    length = query.shape[-3]
    if key.shape[-3] != length:
        raise ValueError(
            f"key must be as long as query with normalization 'prefix'; got S = {key.shape[-3]}, T = {length}."
        )
    batched = query.ndim == 4

    def with_batch(x: Any) -> Any:
        return x if batched or x is None else x[None]

    query, key, value, energy, valid = map(with_batch, (query, key, value, energy, valid))
    key_bias, bias, mask = map(with_batch, (key_bias, bias, mask))
    query_ids, key_ids = map(with_batch, pair)
    energy = clean_energy(energy, valid)
    out = attend_to_prefixes(
        query,
        key,
        value,
        energy,
        prefix_statistics(energy, valid, key_ids),
        jnp.arange(length),
        alpha=alpha,
        tau=tau,
        key_bias=_add_bias(jnp.where(valid, 0.0, -jnp.inf), key_bias, valid),
        mask=mask,
        bias=bias,
        segment_ids=None if key_ids is None else (query_ids, key_ids),
        scale=scale,
        implementation=implementation,
    )
    return out if batched else out[0]


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


def energy_gated_attention_step(
    state: EnergyGatedAttentionState,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K V"],
    energy: Float[Array, "B T N"],
    *,
    alpha: Float[Array, "#N"] | Float[Array, ""] | float,
    tau: Float[Array, "#N"] | Float[Array, ""] | float,
    normalization: str | None = "running",
    token_mask: Bool[Array, "B T"] | None = None,
    key_bias: Float[Array, "#B T #N"] | None = None,
    scale: float | None = None,
) -> tuple[EnergyGatedAttentionState, Float[Array, "B T N V"]]:
    """Appends T new tokens and attends from them, causally; any split gives the causal whole.

    "prefix" gates all cached keys anew for every query. "sequence" cannot know the tokens to come, so it
    computes what "prefix" computes: that is what a model trained with "sequence" meets when it generates.

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

    Returns:
        (new state, output (B, T, N, V) in the query's dtype); NaN once more than `max_length` tokens came.

    Raises:
        ValueError: a wrong shape, dtype or name.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import energy_gated_attention_init_state, energy_gated_attention_step
        >>> state = energy_gated_attention_init_state(1, 8, 2, 4)
        >>> x = jnp.ones((1, 3, 2, 4))
        >>> state, out = energy_gated_attention_step(state, x, x, x, jnp.ones((1, 3, 2)), alpha=2.0, tau=0.0)
        >>> out.shape, int(state.attention.length)
        ((1, 3, 2, 4), 3)
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_rank("query", query, (4,), "(B, T, N, H)")
    check_shape("energy", energy, query.shape[:-1], "(B, T, N)")
    check_dtype("energy", energy, jnp.floating, "floating point")
    check_gate_parameters(alpha, tau, query.shape[-2])
    valid = _valid_keys(token_mask, key_bias, energy)
    energy = clean_energy(energy, valid)
    start = state.attention.length
    energies = lax.dynamic_update_slice(state.energy, energy, (0, start, 0))
    if normalization in ("running", None):
        statistics, gate = energy_gate_step(
            state.statistics, energy, alpha=alpha, tau=tau, normalization=normalization, mask=valid
        )
        gate = _add_bias(gate, key_bias, valid)
        cache, out = dot_product_attention_step(
            state.attention, query, key, value, key_bias=gate, scale=scale
        )
        return EnergyGatedAttentionState(cache, energies, statistics), out
    removal = _add_bias(jnp.where(valid, 0.0, -jnp.inf), key_bias, valid)
    # For the new cache only: jit drops the ungated attention, which nothing uses.
    cache, _ = dot_product_attention_step(state.attention, query, key, value, key_bias=removal, scale=scale)
    statistics = continue_statistics(state.statistics, energy, valid)
    out = attend_to_prefixes(
        query,
        cache.key,
        cache.value,
        energies,
        statistics,
        start + jnp.arange(query.shape[1]),
        alpha=alpha,
        tau=tau,
        key_bias=cache.key_bias,
        scale=scale,
    )
    out = jnp.where(cache.length <= cache.key.shape[1], out, jnp.nan)
    return EnergyGatedAttentionState(cache, energies, jax.tree.map(lambda s: s[:, -1], statistics)), out


def _valid_keys(token_mask: Array | None, key_bias: Array | None, energy: Array) -> Bool[Array, "*B S N"]:
    """The keys that remain, per head: in `token_mask`, and not removed by `key_bias`."""
    valid = broadcast_mask("token_mask", token_mask, energy)
    if key_bias is None:
        return valid
    check_dtype("key_bias", key_bias, jnp.floating, "floating point")
    check_broadcastable("key_bias", key_bias, energy.shape, "(B, S, N)")
    return valid & (key_bias != -jnp.inf)


def _add_bias(gate: Array, key_bias: Array | None, valid: Array) -> Array:
    """gate + key_bias where valid; `gate` is −inf elsewhere already, and the bias there may be anything."""
    return gate if key_bias is None else gate + jnp.where(valid, key_bias, 0).astype(gate.dtype)
