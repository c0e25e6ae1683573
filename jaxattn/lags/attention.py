"""Cross-correlation scores: q·k averaged over small shifts of either side."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import check_broadcastable, check_dtype, check_rank, check_shape
from jaxattn.core.decode import check_sizes
from jaxattn.core.padding import padding_key_bias
from jaxattn.softmax.attention import dot_product_attention
from jaxattn.softmax.cache import (
    DotProductAttentionState,
    dot_product_attention_init_state,
    dot_product_attention_step,
)

TokenMask = Bool[Array, "*B T"] | tuple[Bool[Array, "*B T"] | None, Bool[Array, "*B S"] | None] | None
SegmentIds = Int[Array, "*B T"] | tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None


def cross_correlation(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    lag_logits: Float[Array, "lags"] | Float[Array, "N lags"],
    *,
    token_mask: TokenMask = None,
    segment_ids: SegmentIds = None,
) -> tuple[Float[Array, "*B T N 2*H"], Float[Array, "*B S L 2*H"]]:
    """Queries and keys of twice the width whose plain product is the cross-correlation score.

    score_ij = sum_{l=0..L} w_l q_i·k_{j−l} + sum_{l=−L..−1} w_l q_{i−|l|}·k_j,  w = softmax(lag_logits),

    and a shift beyond the sequence's start contributes 0. It factors: with k~_j = sum_{l>=0} w_l k_{j−l} and
    q~_i = sum_{l<0} w_l q_{i−|l|}, score_ij = [q_i, q~_i]·[k~_j, k_j], so any attention kernel can compute it.

    Why this form is the causal one: a lag l compares tokens at the distance (i − j) + l. For l > 0 that is
    q_i·k_{j−l}. For l < 0 it can be had in two ways: q_i·k_{j+|l|}, the same side shifted the other way, or
    q_{i−|l|}·k_j, the other side shifted back. The first one, with j = i, reads the key |l| tokens after the query,
    which the mask on (i, j) does not remove: with L = 8 every position would see 8 of the tokens it is to predict.
    The second one holds, for j <= i, the tokens i, j, j − l and i − |l| alone, none after i. So every shift here
    goes into the past; and unlike a roll, it brings in zeros, not the other end of the sequence.

    Args:
        query: (B, T, N, H) or (T, N, H).
        key: (B, S, K, H) or (S, K, H), K dividing N.
        lag_logits: (2L + 1,) shared by the heads or (N, 2L + 1), for the lags −L, …, 0, …, L in this order.
        token_mask: True at real tokens, (B, T); a pair of (B, T) and (B, S) (either None) if keys and queries are of
            different sequences. Others contribute nothing to their neighbours, nor does a NaN in them.
        segment_ids: (B, T), or a pair of (B, T) and (B, S), for packed sequences: no shift crosses from one
            segment into another.

    Returns:
        (query', key') in the dtypes of query and key: (B, T, N, 2H), and (B, S, K, 2H) with shared lags or
        (B, S, N, 2H) with lags a head, since the shifted keys then differ between heads. Attend with
        scale 1/sqrt(H), not 1/sqrt(2H).

    Raises:
        ValueError: a wrong shape or dtype, or an even number of lags.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import cross_correlation
        >>> q, k = jnp.ones((1, 6, 4, 8)), jnp.ones((1, 6, 2, 8))
        >>> q2, k2 = cross_correlation(q, k, jnp.zeros(5))
        >>> q2.shape, k2.shape
        ((1, 6, 4, 16), (1, 6, 2, 16))

    Reference:
        The CONV-L ablation of arXiv 2605.21842; as published, the shifts of one sign reach into the future.
    """
    _check(query, key, lag_logits)
    same = query.shape[:-2] == key.shape[:-2]
    query_mask, key_mask = _pair(
        "token_mask", token_mask, jnp.bool_, "boolean, True at real tokens", query, key, same
    )
    query_ids, key_ids = _pair("segment_ids", segment_ids, jnp.integer, "integer", query, key, same)
    past, present = _lag_weights(lag_logits)
    query, key = _zero_masked(query, query_mask), _zero_masked(key, key_mask)
    return _combine(query, key, past, present, query_ids, key_ids, 0)


def cross_correlation_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    lag_logits: Float[Array, "lags"] | Float[Array, "N lags"],
    *,
    key_bias: Float[Array, "*#B S #N"] | None = None,
    token_mask: TokenMask = None,
    mask: Bool[Array, "*#B #N #T #S"] | None = None,
    bias: Float[Array, "*#B #N #T #S"] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    segment_ids: SegmentIds = None,
    implementation: str | None = None,
) -> Float[Array, "*B T N V"]:
    """Softmax attention with the scores of `cross_correlation`.

    Args:
        query: (B, T, N, H), or without B, as are all others then.
        key: (B, S, K, H), K dividing N.
        value: (B, S, K, V).
        lag_logits: (2L + 1,) or (N, 2L + 1), for the lags −L … L.
        key_bias: bias on the keys, broadcastable to (B, S, N); a key that is −inf for every head also
            contributes nothing to its neighbours' keys.
        token_mask: True at real tokens, (B, T), or a pair of (B, T) and (B, S), either None. Others are not attended
            to and contribute nothing to their neighbours.
        mask: True where query i may attend to key j, broadcastable to (B, N, T, S).
        bias: bias on the scores, broadcastable to (B, N, T, S).
        scale: factor on the scores, 1/sqrt(H) when None.
        is_causal: query i attends to keys j <= i; the output then depends on tokens <= i alone.
        segment_ids: (B, T), or a pair of (B, T) and (B, S), for packed sequences.
        implementation: a backend of `dot_product_attention`, which sees the width 2H.

    Returns:
        (B, T, N, V) in the query's dtype.

    Raises:
        ValueError: a wrong shape, dtype or name.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import cross_correlation_attention
        >>> x = jnp.ones((1, 6, 2, 8))
        >>> cross_correlation_attention(x, x, x, jnp.zeros((2, 5)), is_causal=True).shape
        (1, 6, 2, 8)

    Reference:
        As `cross_correlation`.
    """
    _check(query, key, lag_logits)
    same = query.shape[:-2] == key.shape[:-2]
    query_mask, key_mask = _pair(
        "token_mask", token_mask, jnp.bool_, "boolean, True at real tokens", query, key, same
    )
    key_bias = padding_key_bias(key_mask, key_bias)
    shift_mask = key_mask
    if key_bias is not None:
        target = (*key.shape[:-2], query.shape[-2])
        check_broadcastable("key_bias", key_bias, target, "(B, S, N)")
        # The token mask is in the bias by now.
        shift_mask = jnp.broadcast_to(_kept(key_bias), key.shape[:-2])
    wide_query, wide_key = cross_correlation(
        query, key, lag_logits, token_mask=(query_mask, shift_mask), segment_ids=segment_ids
    )
    return dot_product_attention(
        wide_query,
        wide_key,
        _repeat_heads(value, wide_key.shape[-2]),
        key_bias=key_bias,
        mask=mask,
        bias=bias,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        is_causal=is_causal,
        segment_ids=segment_ids,
        implementation=implementation,
    )


class CrossCorrelationState(NamedTuple):
    """The cache of widened keys and of values, and the last L raw queries and keys (zeros before the start)."""

    attention: DotProductAttentionState
    query: Float[Array, "B L N H"]
    key: Float[Array, "B L K H"]


def cross_correlation_attention_init_state(
    batch: int,
    max_length: int,
    num_kv_heads: int,
    head_dim: int,
    lag_logits: Float[Array, "lags"] | Float[Array, "N lags"],
    *,
    num_heads: int | None = None,
    value_dim: int | None = None,
    dtype: Any = jnp.float32,
) -> CrossCorrelationState:
    """An empty cache for `cross_correlation_attention_step`.

    Args:
        batch: sequences decoded together, B.
        max_length: positions the cache can hold.
        num_kv_heads: key/value heads, K.
        head_dim: width of queries and keys, H.
        lag_logits: as every step will get them, (2L + 1,), or (N, 2L + 1): the cache then holds N heads.
        num_heads: query heads, N, a multiple of K; K when None.
        value_dim: width of the values, `head_dim` when None.
        dtype: dtype of the cached arrays.

    Returns:
        A pytree of fixed shapes.

    Raises:
        ValueError: a size is not positive, K does not divide N, or `lag_logits` has another shape.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import cross_correlation_attention_init_state
        >>> state = cross_correlation_attention_init_state(1, 16, 2, 8, jnp.zeros((4, 7)), num_heads=4)
        >>> state.attention.key.shape, state.key.shape
        ((1, 16, 4, 16), (1, 3, 2, 8))
    """
    num_heads = check_sizes(num_kv_heads=num_kv_heads, num_heads=num_heads)
    _check_lag_logits(lag_logits, num_heads)
    lags = lag_logits.shape[-1] // 2
    attention = dot_product_attention_init_state(
        batch,
        max_length,
        num_heads if lag_logits.ndim == 2 else num_kv_heads,
        2 * head_dim,
        num_heads=num_heads,
        value_dim=head_dim if value_dim is None else value_dim,
        dtype=dtype,
    )
    return CrossCorrelationState(
        attention,
        jnp.zeros((batch, lags, num_heads, head_dim), dtype),
        jnp.zeros((batch, lags, num_kv_heads, head_dim), dtype),
    )


def cross_correlation_attention_step(
    state: CrossCorrelationState,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K V"],
    lag_logits: Float[Array, "lags"] | Float[Array, "N lags"],
    *,
    key_bias: Float[Array, "#B T #N"] | None = None,
    token_mask: Bool[Array, "B T"] | None = None,
    scale: float | None = None,
) -> tuple[CrossCorrelationState, Float[Array, "B T N V"]]:
    """Appends T new tokens and attends from them, causally; any split gives the causal whole.

    Args:
        state: from `cross_correlation_attention_init_state` or the step before.
        query: (B, T, N, H), T >= 1 new tokens.
        key: (B, T, K, H).
        value: (B, T, K, V).
        lag_logits: (2L + 1,) or (N, 2L + 1), in the shape the state was made for.
        key_bias: bias on the new keys, broadcastable to (B, T, N), as in `cross_correlation_attention`.
        token_mask: True at real tokens among the new ones, (B, T).
        scale: factor on the scores, 1/sqrt(H) when None; the same in every step.

    Returns:
        (new state, output (B, T, N, V) in the query's dtype); NaN once more than `max_length` tokens came.

    Raises:
        ValueError: a shape or dtype does not fit the state.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import cross_correlation_attention_init_state, cross_correlation_attention_step
        >>> x, lag_logits = jnp.ones((1, 3, 2, 4)), jnp.zeros(3)
        >>> state = cross_correlation_attention_init_state(1, 8, 2, 4, lag_logits)
        >>> state, out = cross_correlation_attention_step(state, x, x, x, lag_logits)
        >>> out.shape, int(state.attention.length)
        ((1, 3, 2, 4), 3)
    """
    check_rank("query", query, (4,), "(B, T, N, H)")
    _check(query, key, lag_logits)
    lags = state.query.shape[1]
    if lag_logits.shape[-1] != 2 * lags + 1:
        raise ValueError(
            f"lag_logits must have the state's 2L + 1 = {2 * lags + 1} lags; got {lag_logits.shape}."
        )
    key_heads = query.shape[-2] if lag_logits.ndim == 2 else key.shape[-2]
    if state.attention.key.shape[2] != key_heads:
        raise ValueError(
            f"lag_logits must have the form the state was made for, (N, 2L + 1) or (2L + 1,); "
            f"got {lag_logits.shape} for a cache of {state.attention.key.shape[2]} heads."
        )
    query_mask, _ = _pair(
        "token_mask", token_mask, jnp.bool_, "boolean, True at real tokens", query, key, True
    )
    key_bias = padding_key_bias(token_mask, key_bias)
    kept = None if key_bias is None else jnp.broadcast_to(_kept(key_bias), key.shape[:-2])
    queries = jnp.concatenate(
        [state.query, _zero_masked(query, query_mask).astype(state.query.dtype)], axis=1
    )
    keys = jnp.concatenate([state.key, _zero_masked(key, kept).astype(state.key.dtype)], axis=1)
    past, present = _lag_weights(lag_logits)
    wide_query, wide_key = _combine(queries, keys, past, present, None, None, lags)
    attention, out = dot_product_attention_step(
        state.attention,
        wide_query.astype(query.dtype),
        wide_key.astype(key.dtype),
        _repeat_heads(value, key_heads),
        key_bias=key_bias,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
    )
    recent = queries.shape[1] - lags
    return CrossCorrelationState(attention, queries[:, recent:], keys[:, recent:]), out


def _lag_weights(lag_logits: Array) -> tuple[Array, Array]:
    """softmax over the lags, cut into what shifts the query by 1 … L and what shifts the key by 0 … L."""
    weights = jax.nn.softmax(lag_logits.astype(jnp.float32), axis=-1)
    lags = lag_logits.shape[-1] // 2
    return jnp.flip(weights[..., :lags], axis=-1), weights[..., lags:]


def _combine(query, key, past, present, query_ids, key_ids, history: int) -> tuple[Array, Array]:
    """[q, q~] and [k~, k] of all positions after the first `history` ones, which are only shifted from."""
    if past.ndim == 2:
        key = _repeat_heads(key, past.shape[0])
    # Lag 0 belongs to the key; the query gets a zero weight there.
    past = jnp.concatenate([jnp.zeros_like(present[..., :1]), past], axis=-1)
    shifted_query = _weighted_shifts(query, past, query_ids)
    shifted_key = _weighted_shifts(key, present, key_ids)
    wide_query = jnp.concatenate([query, shifted_query], axis=-1)
    wide_key = jnp.concatenate([shifted_key, key], axis=-1)
    return wide_query[..., history:, :, :], wide_key[..., history:, :, :]


def _weighted_shifts(
    x: Float[Array, "*B T N H"], weights: Array, ids: Array | None
) -> Float[Array, "*B T N H"]:
    """sum_l weights[…, l] x_{t−l} within the segment, accumulated in float32, in the dtype of x."""
    wide = x.astype(jnp.float32)
    total = jnp.zeros_like(wide)
    for lag in range(min(weights.shape[-1], x.shape[-3])):
        shifted = _shift(wide, lag, axis=-3)
        if ids is not None and lag:
            # Filled with another id than any: what is shifted in from before the start is 0 anyway.
            same = _shift(ids, lag, axis=-1) == ids
            shifted = jnp.where(same[..., None, None], shifted, 0)
        total += weights[..., lag, None] * shifted
    return total.astype(x.dtype)


def _shift(x: Array, count: int, axis: int) -> Array:
    """x moved `count` places towards the end of `axis`, zeros coming in at its start."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (count, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, padding), 0, x.shape[axis], axis=axis)


def _zero_masked(x: Array, token_mask: Array | None) -> Array:
    return x if token_mask is None else jnp.where(token_mask[..., None, None], x, 0)


def _kept(key_bias: Array) -> Array:
    """(B, S): False where a key is removed for every head."""
    return (key_bias != -jnp.inf).any(axis=-1)


def _repeat_heads(x: Array, num_heads: int) -> Array:
    return x if x.shape[-2] == num_heads else jnp.repeat(x, num_heads // x.shape[-2], axis=-2)


def _pair(name: str, value: Any, kind: Any, accepted: str, query: Array, key: Array, same: bool) -> tuple:
    """One array for both sides or a pair, as a checked pair of arrays or Nones."""
    if value is None:
        return None, None
    if not isinstance(value, tuple | list):
        if not same:
            raise ValueError(
                f"{name} must be a pair (for the queries, for the keys) when they differ in length; got one array "
                f"for T = {query.shape[-3]}, S = {key.shape[-3]}."
            )
        value = (value, value)
    if len(value) != 2:
        raise ValueError(f"{name} must be one array or a pair (query, key); got {len(value)} arrays.")
    for array, x, layout in zip(value, (query, key), ("(B, T)", "(B, S)"), strict=True):
        if array is not None:
            check_dtype(name, array, kind, accepted)
            check_shape(name, array, x.shape[:-2], layout)
    return tuple(value)


def _check(query: Array, key: Array, lag_logits: Array) -> None:
    check_rank("query", query, (3, 4), "(B, T, N, H) or (T, N, H)")
    check_rank("key", key, (query.ndim,), "(B, S, K, H), or (S, K, H) with an unbatched query")
    num_heads, width = query.shape[-2:]
    check_shape("key", key, (*query.shape[:-3], key.shape[-3], key.shape[-2], width), "(B, S, K, H)")
    if key.shape[-2] == 0 or num_heads % key.shape[-2]:
        raise ValueError(
            f"query must have a multiple of key's heads; got N = {num_heads}, K = {key.shape[-2]}."
        )
    _check_lag_logits(lag_logits, num_heads)


def _check_lag_logits(lag_logits: Array, num_heads: int) -> None:
    check_rank("lag_logits", lag_logits, (1, 2), "(2L + 1,) or (N, 2L + 1)")
    if lag_logits.shape[-1] % 2 == 0 or lag_logits.shape[:-1] not in ((), (num_heads,)):
        raise ValueError(
            f"lag_logits must have shape (2L + 1,) or (N, 2L + 1) with N = {num_heads}; got {lag_logits.shape}."
        )
