"""Causal linear attention of one head over one block of tokens, cut into chunks, and its gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.linear.sums import State, Sums, SumsGradient, product, ratio, segmented_cummax, total_of


class Factors(NamedTuple):
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


def _factors(state: State, log_weight: Array, segments: Array | None, chunk: int, strict: bool) -> Factors:
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
    factors = Factors(within, before, after, between, scales[-1])
    return factors if segments is None else within_segments(factors, state, segments)


def within_segments(factors: Factors, state: State, segments: Array) -> Factors:
    """The factors, 0 between tokens of different segments (L,), which are contiguous."""
    assert state.segment is not None
    ids = segments.reshape(factors.after.shape)
    ends = jnp.concatenate([state.segment[None], ids[:, -1]])
    return factors._replace(
        within=jnp.where(ids[:, :, None] == ids[:, None, :], factors.within, 0),
        before=jnp.where(ids == ends[:-1, None], factors.before, 0),
        after=jnp.where(ids == ends[1:, None], factors.after, 0),
        between=jnp.where(ends == ends[:, None], factors.between, 0),
    )


class _Pieces(NamedTuple):
    """Chunked arrays: phi_q (n, C, G, F), phi_k (n, C, F), value (n, C, V), weights (n, C, G, C), and the states
    (n + 1, F, …) before every chunk and after the last. Features have the dtype of the values."""

    phi_q: Array
    phi_k: Array
    value: Array
    weights: Array
    states: Sums


def _pieces(state: State, factors: Factors, phi_q: Array, phi_k: Array, value: Array) -> _Pieces:
    count, chunk = factors.after.shape
    phi_q = phi_q.reshape(count, chunk, *phi_q.shape[1:]).astype(value.dtype)
    phi_k = phi_k.reshape(count, chunk, -1)
    value = value.reshape(count, chunk, -1)
    kept = (phi_k * factors.after[..., None]).astype(value.dtype)
    phi_k = phi_k.astype(value.dtype)
    weights = product("cigf,cjf->cigj", phi_q, phi_k) * factors.within[:, :, None, :]
    sums = Sums(product("cjf,cjv->cfv", kept, value), total_of(kept, 1))
    states = jax.tree.map(lambda x, y: _states(factors.between, x, y), state.sums, sums)
    return _Pieces(phi_q, phi_k, value, weights, states)


def _states(between: Array, before: Array, sums: Array) -> Array:
    """The states (n + 1, …) before every chunk and after the last, from that before the block and n sums."""
    if sums.shape[0] == 1:  # len() would refuse the symbol of an exported length
        # A decoding step, mostly: a product would copy the state several times.
        return jnp.stack([before, between[1, 0] * before + between[1, 1] * sums[0]])
    return _mix("cd,d...->c...", between, jnp.concatenate([before[None], sums]))


def _mix(spec: str, between: Array, x: Array) -> Array:
    """States are carried from block to block: rounded once more in each, they would drift."""
    return product(spec, between, x, precision=lax.Precision.HIGHEST)


def causal_block(
    state: State,
    phi_q: Array,
    phi_k: Array,
    log_weight: Array,
    value: Array,
    segments: Array | None,
    chunk: int,
    strict: bool,
) -> tuple[State, Sums]:
    """Queries meet keys up to themselves (before themselves if `strict`).

    Args:
        state: of the keys before the block.
        phi_q: (L, G, F) features of G queries a position; phi_k: (L, F); log_weight: (L,); value: (L, V).
        segments: (L,) contiguous ids, or None.
        chunk: C, dividing L: inside a chunk pairs meet one by one, across chunks through states.
        strict: whether a query does not meet its own position.

    Returns:
        (state after the block, sums (L, G, …) relative to the reference of every query).
    """
    factors = _factors(state, log_weight, segments, chunk, strict)
    return apply_factors(state, factors, phi_q, phi_k, value, segments)


def apply_factors(
    state: State, factors: Factors, phi_q: Array, phi_k: Array, value: Array, segments: Array | None
) -> tuple[State, Sums]:
    """`causal_block` with given weights between its tokens."""
    x = _pieces(state, factors, phi_q, phi_k, value)
    before = factors.before[:, :, None]
    earlier = jax.tree.map(lambda s: s[:-1], x.states)
    weights = x.weights.astype(value.dtype)
    total = product("cigj,cjv->cigv", weights, x.value)
    total += product("cigf,cfv->cigv", x.phi_q, earlier.total) * before[..., None]
    weight = total_of(weights, -1) + product("cigf,cf->cig", x.phi_q, earlier.weight) * before
    last = State(
        jax.tree.map(lambda s: s[-1], x.states), factors.top, None if segments is None else segments[-1]
    )
    return last, Sums(total.reshape(-1, *total.shape[2:]), weight.reshape(-1, weight.shape[2]))


def causal_block_gradient(
    state: State,
    phi_q: Array,
    phi_k: Array,
    log_weight: Array,
    value: Array,
    segments: Array | None,
    chunk: int,
    strict: bool,
    grad_state: Sums,
    grad: SumsGradient,
) -> tuple[Sums, Array, Array, Array, Array]:
    """Cotangents of (state.sums, phi_q, phi_k, log_weight, value) from those of `causal_block`'s results.

    References and their ratios are constants here: they cancel in the quotient of the sums.
    """
    length = log_weight.shape[0]
    factors = _factors(state, log_weight, segments, chunk, strict)
    x = _pieces(state, factors, phi_q, phi_k, value)
    grad = jax.tree.map(lambda g: g.reshape(*x.phi_q.shape[:3], *g.shape[2:]), grad)
    phi_q = phi_q.reshape(x.phi_q.shape)
    near = product("cigv,cjv->cigj", grad.value, x.value)
    far = product("cigv,cfv->cigf", grad.value, x.states.total[:-1])
    before = factors.before[:, :, None, None]
    delta = grad.of_weight((x.weights * near).sum(axis=-1) + (phi_q * far * before).sum(axis=-1))
    factor = grad.factor[..., None]
    asked = (phi_q * (before * factor)).astype(value.dtype)
    grad_states = Sums(product("cigf,cigv->cfv", asked, grad.value), product("cigf,cig->cf", asked, delta))
    grad_states = jax.tree.map(lambda g, last: jnp.concatenate([g, last[None]]), grad_states, grad_state)
    sources = jax.tree.map(lambda g: _mix("cd,c...->d...", factors.between, g), grad_states)
    grad_chunks = jax.tree.map(lambda g: g[1:], sources)
    after = factors.after[..., None]
    scores = (near + delta[..., None]) * (factor * factors.within[:, :, None, :])
    scores = scores.astype(value.dtype)
    grad_phi_q = product("cigj,cjf->cigf", scores, x.phi_k)
    grad_phi_q += (far + delta[..., None] * x.states.weight[:-1, None, None]) * (before * factor)
    grad_phi_k = product("cigj,cigf->cjf", scores, x.phi_q)
    grad_phi_k += (product("cjv,cfv->cjf", x.value, grad_chunks.total) + grad_chunks.weight[:, None]) * after
    weights = (x.weights * factor).astype(value.dtype)
    grad_value = product("cigj,cigv->cjv", weights, grad.value)
    grad_value += product("cjf,cfv->cjv", x.phi_k, grad_chunks.total) * after
    grad_phi_k = grad_phi_k.reshape(length, -1)
    return (
        jax.tree.map(lambda g: g[0], sources),
        grad_phi_q.reshape(length, *grad_phi_q.shape[2:]),
        grad_phi_k,
        (phi_k * grad_phi_k).sum(axis=-1),
        grad_value.reshape(length, -1),
    )
