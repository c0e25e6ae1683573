"""Causal linear attention without normalisation, whose sums decay from token to token: RetNet, scalar gates, SSD.

It works in the chunks of the normalised form. Nothing here is relative to a largest weight: decays between two tokens
are sums over the tokens between them alone, never differences of sums from the start, so they are exact however much
has decayed. Derivatives of any order are those of JAX, a block recomputed at a time.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxattn.core.call import Call, accumulation_dtype
from jaxattn.core.checks import unknown_or
from jaxattn.core.mesh import vary_like
from jaxattn.core.sequence import exclusive_scan
from jaxattn.linear.blocks import Factors, apply_factors, within_segments
from jaxattn.linear.heads import in_blocks, joined, over_batch, over_heads
from jaxattn.linear.padded import keys_like_queries, pad_to_blocks
from jaxattn.linear.passes import key_ids
from jaxattn.linear.plan import IDENTITY, Plan, Tiling, make_plan
from jaxattn.linear.segments import in_order_of_segments
from jaxattn.linear.sums import State, Sums

# e to it, squared, is still a float32: an infinite key would make earlier outputs NaN.
MAX_KEY_BIAS = 40.0
# Less than any float holds after its exponential, and finite: sums of it have gradients.
_FORGOTTEN = -1e30


def check_decay(call: Call, normalize: bool) -> Call:
    """The call, with decays where there is no normalisation.

    Raises:
        ValueError: a decay and normalisation; without normalisation a call that is not causal, or a key bias above
            `MAX_KEY_BIAS`, as far as it is known while tracing.
    """
    if normalize:
        if call.log_decay is not None:
            raise ValueError(
                "log_decay needs normalize=False; under normalisation a decay is a key bias, as from "
                "forget_key_bias. Got both."
            )
        return call
    if not call.is_causal:
        raise ValueError("normalize=False is for causal attention; got is_causal=False.")
    bias = call.key_bias
    if bias is not None and not unknown_or(lambda x: ~(x > MAX_KEY_BIAS).any(), bias):
        raise ValueError(
            f"key_bias must be at most {MAX_KEY_BIAS:g} with normalize=False, where nothing divides by its "
            f"exponential; got {float(np.asarray(bias).max()):g}. Scale the values instead."
        )
    if call.log_decay is None:
        return call.replace(log_decay=jnp.zeros((1, 1, 1, 1), accumulation_dtype(call.query)))
    return call


def attend_decayed(how: tuple[Tiling, str | None], call: Call) -> Array:
    """(B, T, K, G, V) of a call in the form of `Call.with_key_weights`, with decays; `how` ends in the axis name."""
    tiling, axis_name = how

    def attend(call: Call) -> Array:
        batch, _, heads, width = call.key.shape
        dtype = call.key_bias.dtype
        start, segment = jnp.zeros((batch, heads, width, call.value.shape[-1] + 1), dtype), None
        if axis_name is not None:
            start, segment = _elsewhere(call, start, axis_name)
        return step_decayed(tiling, start, call, segment)[1]

    call = keys_like_queries(call)
    contiguous = call.segment_ids is None or axis_name is not None
    return attend(call) if contiguous else in_order_of_segments(call, attend)


def _elsewhere(call: Call, zeros: Array, axis_name: str) -> tuple[Array, Array | None]:
    """The sums over the keys of earlier devices, and the segment that they are of."""
    ids = None if call.segment_ids is None else call.segment_ids[1]
    decay = jnp.maximum(call.log_decay, _FORGOTTEN)
    # Decays after every key: summed up from the end, as between the tokens of a block.
    after = jnp.flip(jnp.cumsum(jnp.flip(decay[:, 1:], 1), axis=1), 1)
    after = jnp.pad(after, [(0, 0), (0, 1), (0, 0), (0, 0)])
    weight = jnp.exp(jnp.minimum(call.key_bias, MAX_KEY_BIAS) + after)
    if ids is not None:
        weight = jnp.where((ids == ids[:, -1:])[:, :, None, None], weight, 0)
    ones = jnp.ones_like(call.value[..., :1])
    value = jnp.concatenate([call.value, ones], axis=-1)
    total = jnp.einsum("BTKM,BTKV->BKMV", call.key * weight, value, preferred_element_type=zeros.dtype)
    own = total, decay.sum(axis=1)[..., None]

    def merge(far: Any, near: Any) -> Any:
        return far[0] * jnp.exp(near[1]) + near[0], far[1] + near[1]

    empty = zeros, jnp.zeros_like(own[1])
    if ids is None:
        return exclusive_scan(merge, empty, own, axis_name)[0], None
    (total, _), segment = exclusive_scan(merge, empty, own, axis_name, segment=ids[:, -1])
    return total, segment


def step_decayed(
    tiling: Tiling, total: Array, call: Call, segment: Array | None = None
) -> tuple[Array, Array]:
    """Sums (B, K, M, V + 1) after the tokens of a call, and their outputs (B, T, K, G, V).

    `segment` (B,) is that of the sums before; None for the first token's.
    """
    length = call.query.shape[1]
    plan = make_plan(IDENTITY, tiling, length, length, is_causal=True)
    weight = jnp.exp(jnp.minimum(call.key_bias, MAX_KEY_BIAS))
    call = call.replace(key=(call.key * weight).astype(call.key.dtype))
    x = vary_like(pad_to_blocks(call, plan), call, total)
    total, out = over_batch(plan, lambda tree: _decayed_pass(plan, *tree), (vary_like(total, x), x, segment))
    return total, out[:, :length]


def _decayed_pass(plan: Plan, total: Array, x: Call, segment: Array | None) -> tuple[Array, Array]:
    """One sequence: total (K, M, V + 1) after it, and its outputs."""

    def head(_: Any, segments: Array | None, state: State, tokens: Any) -> Any:
        query, key, value, log_decay = tokens
        factors = _factors(log_decay[:, 0], plan.chunk)._replace(top=state.top)
        if segments is not None:
            factors = within_segments(factors, state, segments)
        state, sums = apply_factors(state, factors, query, key, value, segments)
        return state, sums.total

    @jax.checkpoint
    def body(state: State, block: Call) -> Any:
        arrays = plan.operands((block.query, block.key, block.value, block.log_decay))
        return over_heads(plan, head, [], key_ids(block), state, arrays)

    ids = key_ids(x)
    # Sums are relative to nothing.
    top = jnp.zeros(total.shape[:1], total.dtype)
    if ids is not None:
        segment = jnp.broadcast_to(ids[0] if segment is None else segment, top.shape)
    state = State(Sums(total[..., :-1], total[..., -1]), top, segment)
    last, out = lax.scan(body, vary_like(state, x), in_blocks(x, plan.key_block))
    return last.sums.joined(), joined(out)


def _factors(log_decay: Array, chunk: int) -> Factors:
    """Weights between the tokens (L,) of a block: e to the sum of the decays after one up to the other."""
    decay = jnp.maximum(log_decay, _FORGOTTEN).reshape(-1, chunk)
    between = _sums_between(decay)
    from_start = jnp.cumsum(decay, axis=-1)
    chunks = jnp.concatenate([jnp.zeros_like(decay[:1, 0]), from_start[:, -1]])
    return Factors(
        within=jnp.tril(jnp.exp(between)),
        before=jnp.exp(from_start),
        after=jnp.exp(between[:, -1]),
        between=jnp.tril(jnp.exp(_sums_between(chunks))),
        top=jnp.zeros((), decay.dtype),
    )


def _sums_between(x: Array) -> Array:
    """Σ x_k over j < k <= i, (..., n) -> (..., i, j); 0 where j >= i."""
    index = jnp.arange(x.shape[-1])
    after = index[:, None] > index
    return jnp.cumsum(jnp.where(after, x[..., :, None], 0), axis=-2)
