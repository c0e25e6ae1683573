"""Causal linear attention of one head over one block of tokens, cut into chunks, and its gradient."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.linear.sums import State, ratio, segmented_cummax, with_one


class _Factors(NamedTuple):
    """Scalar weights between the tokens of one block, cut into n chunks of C; none exceeds 1.

    within (n, C, C): key j of a chunk for its query i; before (n, C): the state before the chunk for query i; after
    (n, C): key j for the state after its chunk; between (n + 1, n + 1): row c gives the state before chunk c from
    the state before the block (column 0) and from the sums over the chunks (columns 1 … n).
    """

    within: Array
    before: Array
    after: Array
    between: Array
    top: Array


def _factors(state: State, log_weight: Array, segments: Array | None, chunk: int, strict: bool) -> _Factors:
    length = log_weight.shape[0]
    # References cancel in the quotient of the sums: constants, to any order of derivative.
    state = state._replace(top=lax.stop_gradient(state.top))
    fixed = lax.stop_gradient(log_weight)
    lw = log_weight.reshape(-1, chunk)
    # Query i measures everything against the largest weight among keys up to i: it knows no other.
    if segments is None:
        reference = jnp.maximum(lax.cummax(fixed), state.top)
    else:
        assert state.segment is not None
        tops = jnp.concatenate([state.top[None], fixed])
        reference = segmented_cummax(tops, jnp.concatenate([state.segment[None], segments]))[1:]
    reference = reference.reshape(-1, chunk)
    scales = jnp.concatenate([state.top[None], reference[:, -1]])
    index = jnp.arange(chunk)
    seen = index[:, None] > index if strict else index[:, None] >= index
    within = jnp.where(seen, ratio(lw[:, None, :], reference[:, :, None]), 0)
    before = ratio(scales[:-1, None], reference)
    after = ratio(lw, scales[1:, None])
    between = jnp.tril(ratio(scales, scales[:, None]))
    if segments is not None:
        assert state.segment is not None
        ids = segments.reshape(length // chunk, chunk)
        ends = jnp.concatenate([state.segment[None], ids[:, -1]])
        within = jnp.where(ids[:, :, None] == ids[:, None, :], within, 0)
        before = jnp.where(ids == ends[:-1, None], before, 0)
        after = jnp.where(ids == ends[1:, None], after, 0)
        between = jnp.where(ends == ends[:, None], between, 0)
    return _Factors(within, before, after, between, scales[-1])


def _pieces(
    state: State, factors: _Factors, phi_q: Array, phi_k: Array, value: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Chunked arrays: phi_q (n, C, G, F), phi_k (n, C, F), [v, 1] (n, C, V + 1), weights (n, C, G, C), and the
    states (n + 1, F, V + 1) before every chunk and after the last."""
    count, chunk = factors.after.shape
    phi_q = phi_q.reshape(count, chunk, *phi_q.shape[1:])
    phi_k = phi_k.reshape(count, chunk, -1)
    ones = with_one(value).reshape(count, chunk, -1)
    weights = jnp.einsum("cigf,cjf->cigj", phi_q, phi_k) * factors.within[:, :, None, :]
    sums = jnp.einsum("cjf,cjv->cfv", phi_k, ones * factors.after[..., None])
    states = jnp.einsum("cd,dfv->cfv", factors.between, jnp.concatenate([state.total[None], sums]))
    return phi_q, phi_k, ones, weights, states


def causal_block(
    state: State,
    phi_q: Array,
    phi_k: Array,
    log_weight: Array,
    value: Array,
    segments: Array | None,
    chunk: int,
    strict: bool,
) -> tuple[State, Array]:
    """Queries meet keys up to themselves (before themselves if `strict`).

    Args:
        state: of the keys before the block.
        phi_q: (L, G, F) features of G queries a position; phi_k: (L, F); log_weight: (L,); value: (L, V).
        segments: (L,) contiguous ids, or None.
        chunk: C, dividing L: inside a chunk pairs meet one by one, across chunks through states.
        strict: whether a query does not meet its own position.

    Returns:
        (state after the block, sums (L, G, V + 1) relative to the reference of every query).
    """
    factors = _factors(state, log_weight, segments, chunk, strict)
    phi_q, phi_k, ones, weights, states = _pieces(state, factors, phi_q, phi_k, value)
    sums = jnp.einsum("cigj,cjv->cigv", weights, ones)
    sums += jnp.einsum("cigf,cfv->cigv", phi_q, states[:-1]) * factors.before[:, :, None, None]
    last = None if segments is None else segments[-1]
    return State(states[-1], factors.top, last), sums.reshape(-1, *sums.shape[2:])


def causal_block_gradient(
    state: State,
    phi_q: Array,
    phi_k: Array,
    log_weight: Array,
    value: Array,
    segments: Array | None,
    chunk: int,
    strict: bool,
    grad_total: Array,
    grad_sums: Array,
) -> tuple[Array, Array, Array, Array, Array]:
    """Cotangents of (state.total, phi_q, phi_k, log_weight, value) from those of `causal_block`'s results.

    References and their ratios are constants here: they cancel in the quotient of the sums.
    """
    length = log_weight.shape[0]
    factors = _factors(state, log_weight, segments, chunk, strict)
    phi_q, phi_k, ones, weights, states = _pieces(state, factors, phi_q, phi_k, value)
    grad = grad_sums.reshape(*phi_q.shape[:3], -1)
    grad_far = grad * factors.before[:, :, None, None]
    grad_states = jnp.einsum("cigf,cigv->cfv", phi_q, grad_far)
    grad_states = jnp.concatenate([grad_states, grad_total[None]])
    grad_sources = jnp.einsum("cd,cfv->dfv", factors.between, grad_states)
    grad_chunks = grad_sources[1:]
    grad_weights = jnp.einsum("cigv,cjv->cigj", grad, ones) * factors.within[:, :, None, :]
    grad_phi_q = jnp.einsum("cigj,cjf->cigf", grad_weights, phi_k)
    grad_phi_q += jnp.einsum("cigv,cfv->cigf", grad_far, states[:-1])
    grad_phi_k = jnp.einsum("cigj,cigf->cjf", grad_weights, phi_q)
    grad_phi_k += jnp.einsum("cjv,cfv->cjf", ones * factors.after[..., None], grad_chunks)
    grad_ones = jnp.einsum("cigj,cigv->cjv", weights, grad)
    grad_ones += jnp.einsum("cjf,cfv->cjv", phi_k, grad_chunks) * factors.after[..., None]
    grad_log_weight = (ones * grad_ones).sum(axis=-1)
    return (
        grad_sources[0],
        grad_phi_q.reshape(length, *grad_phi_q.shape[2:]),
        grad_phi_k.reshape(length, -1),
        grad_log_weight.reshape(length),
        grad_ones[..., :-1].reshape(length, -1),
    )
