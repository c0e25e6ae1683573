"""Cross-correlation scores: q·k averaged over small shifts of either side, as one product of wider vectors."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.call import accumulation_dtype, check_qk, repeat_heads
from jaxattn.core.checks import check_pair, check_rank
from jaxattn.core.sequence import check_axis, halo

LagLogits = Float[Array, "lags"] | Float[Array, "N lags"]
TokenMask = Bool[Array, "*B T"] | tuple[Bool[Array, "*B T"] | None, Bool[Array, "*B S"] | None] | None
SegmentIds = Int[Array, "*B T"] | tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None


def cross_correlation(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    lag_logits: LagLogits,
    *,
    token_mask: TokenMask = None,
    segment_ids: SegmentIds = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "*B T N 2*H"], Float[Array, "*B S L 2*H"]]:
    r"""Queries and keys of twice the width whose plain product is the cross-correlation score.

    $$ score_{ij} = \sum_{l=0}^{L} w_l\, q_i \cdot k_{j-l} + \sum_{l=-L}^{-1} w_l\, q_{i-|l|} \cdot k_j
       = [q_i, \tilde q_i] \cdot [\tilde k_j, k_j], \qquad
       \tilde k_j = \sum_{l \ge 0} w_l k_{j-l}, \quad \tilde q_i = \sum_{l < 0} w_l q_{i-|l|}, $$

    with w = softmax(lag_logits). A shift beyond the sequence's start contributes 0, and any attention kernel can
    compute the product.

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
        axis_name: an axis of a mesh over which `jax.shard_map` cuts the tokens; every device then reads the last L of
            the device before.

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
    check_qk(query, key)
    check_lag_logits(lag_logits, query.shape[-2])
    query_mask, key_mask = check_token_mask(token_mask, query, key)
    query_ids, key_ids = _pair("segment_ids", segment_ids, jnp.integer, "integer", query, key)
    query, key = zero_masked(query, query_mask), zero_masked(key, key_mask)
    check_axis(axis_name)
    history = 0
    if axis_name is not None:
        history = lag_logits.shape[-1] // 2

        def with_history(x: Any, axis: int) -> Any:
            return x if x is None else jnp.concatenate([halo(x, axis_name, history, axis), x], axis=axis)

        query, key = with_history(query, -3), with_history(key, -3)
        query_ids, key_ids = with_history(query_ids, -1), with_history(key_ids, -1)
    return widen(query, key, *lag_weights(lag_logits), query_ids, key_ids, history)


def lag_weights(lag_logits: Array) -> tuple[Array, Array]:
    """softmax over the lags, cut into what shifts the query by 1 … L and what shifts the key by 0 … L."""
    weights = jax.nn.softmax(lag_logits.astype(accumulation_dtype(lag_logits)), axis=-1)
    lags = lag_logits.shape[-1] // 2
    return jnp.flip(weights[..., :lags], axis=-1), weights[..., lags:]


def widen(
    query: Array,
    key: Array,
    past: Array,
    present: Array,
    query_ids: Array | None = None,
    key_ids: Array | None = None,
    history: int = 0,
) -> tuple[Array, Array]:
    """[q, q~] and [k~, k] of all positions after the first `history` ones, which are only shifted from."""
    if past.ndim == 2:
        key = repeat_heads(key, past.shape[0], axis=-2)
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
    """sum_l weights[…, l] x_{t−l} within the segment, accumulated in float32 and returned in the dtype of x."""
    wide = x.astype(accumulation_dtype(x))
    total = jnp.zeros_like(wide)
    for lag in range(weights.shape[-1]):
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


def zero_masked(x: Array, mask: Array | None) -> Array:
    """x, 0 where the token mask is False."""
    return x if mask is None else jnp.where(mask[..., None, None], x, 0)


def check_token_mask(token_mask: TokenMask, query: Array, key: Array) -> tuple[Array | None, Array | None]:
    """The masks of queries and of keys, checked."""
    return _pair("token_mask", token_mask, jnp.bool_, "boolean, True at real tokens", query, key)


def _pair(name: str, value: Any, kind: Any, accepted: str, query: Array, key: Array) -> tuple[Any, Any]:
    if value is None:
        return None, None
    return check_pair(name, value, kind, accepted, query.shape[:-2], key.shape[:-2])


def check_lag_logits(lag_logits: Array, num_heads: int) -> None:
    """Raises unless there is an odd number of lags, for all heads or for each."""
    check_rank("lag_logits", lag_logits, (1, 2), "(2L + 1,) or (N, 2L + 1)")
    if lag_logits.shape[-1] % 2 == 0 or lag_logits.shape[:-1] not in ((), (num_heads,)):
        raise ValueError(
            f"lag_logits must have shape (2L + 1,) or (N, 2L + 1) with N = {num_heads}; got {lag_logits.shape}."
        )
