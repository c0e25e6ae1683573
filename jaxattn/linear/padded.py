"""Linear attention of a call of any length: padded to whole blocks, on every device that has a part of the tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.core.mesh import vary_like
from jaxattn.core.sequence import exclusive_scan
from jaxattn.linear.chunked import chunked_attention
from jaxattn.linear.heads import over_batch
from jaxattn.linear.passes import empty_state, key_pass
from jaxattn.linear.plan import FeatureFunctions, Parameters, Plan, Tiling, make_plan
from jaxattn.linear.sums import State, merge


def attend_padded(
    call: Call,
    features: FeatureFunctions,
    parameters: Parameters,
    tiling: Tiling,
    attend: Callable[..., Array] = chunked_attention,
    axis_name: str | None = None,
    reverse: bool = False,
    **options: Any,
) -> Array:
    """(B, T, K, G, V) weighted means, or sums as `options` say; see `make_plan`. Segments must be contiguous.

    With an axis name a part of the tokens is on every device; `reverse` if both they and the devices are.
    """
    length, key_length = call.query.shape[1], call.key.shape[1]
    if call.is_causal:
        call, key_length = keys_like_queries(call), length
    plan = make_plan(features, tiling, length, key_length, is_causal=call.is_causal, **options)
    operands = list(parameters), pad_to_blocks(call, plan)
    # Marked before the kernel: what is replicated then gets the sum of the cotangents of all devices.
    parameters, x = vary_like(operands, operands)
    before = None if axis_name is None else _keys_elsewhere(plan, parameters, x, axis_name, reverse)
    return attend(plan, parameters, x, before)[:, :length]


def _keys_elsewhere(plan: Plan, parameters: Parameters, x: Call, axis_name: str, reverse: bool) -> State:
    """The sums over the keys of earlier devices if causal, else of all others; every array is (B, K, …).

    Args:
        plan: of the call.
        parameters: of the features.
        x: this device's part, as `chunked_attention` takes it.
        axis_name: over which the tokens are cut.
        reverse: whether the tokens are reversed, so that later devices are the earlier ones.
    """
    segment = None
    if x.segment_ids is not None:
        ids = x.segment_ids[1]
        segment = ids[:, -1]
        # Of earlier segments nobody elsewhere sees anything.
        same = (ids == ids[:, -1:])[:, :, None, None]
        x = x.replace(key_bias=jnp.where(same, x.key_bias, -jnp.inf), segment_ids=None)
    own = over_batch(plan, lambda x: key_pass(plan, parameters, x, empty_state(plan, parameters, x))[0], x)
    empty = jax.tree.map(jnp.zeros_like, own)._replace(top=jnp.full_like(own.top, -jnp.inf))
    scan = partial(exclusive_scan, merge, empty, own, axis_name)
    if not plan.is_causal:
        return merge(scan(), scan(reverse=True))
    if segment is None:
        return scan(reverse=reverse)
    state, segment = scan(segment=segment, reverse=reverse)
    return state._replace(segment=segment)


def pad_to_blocks(call: Call, plan: Plan) -> Call:
    """Adds queries nobody reads and keys nobody sees, up to multiples of the plan's blocks."""
    query_length, key_length = (
        -(-x.shape[1] // block) * block
        for x, block in ((call.query, plan.query_block), (call.key, plan.key_block))
    )
    return pad_tokens(call, query_length, key_length)


def keys_like_queries(call: Call) -> Call:
    """As many keys as queries: later keys are seen by nobody, missing ones are removed keys."""
    length = call.query.shape[1]
    names = ("key", "value", "key_bias", "log_decay")
    arrays = {name: getattr(call, name) for name in names}
    call = call.replace(**{name: None if x is None else x[:, :length] for name, x in arrays.items()})
    return pad_tokens(call, length, length)


def pad_tokens(call: Call, query_length: int, key_length: int) -> Call:
    """Adds queries nobody reads and removed keys."""

    def widen(x: Array, length: int, **options: Any) -> Array:
        missing = length - x.shape[1]
        return jnp.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)], **options) if missing else x

    ids = call.segment_ids
    return call.replace(
        query=widen(call.query, query_length),
        key=widen(call.key, key_length),
        value=widen(call.value, key_length),
        key_bias=widen(call.key_bias, key_length, constant_values=-jnp.inf),
        log_decay=None if call.log_decay is None else widen(call.log_decay, key_length),
        segment_ids=None if ids is None else tuple(widen(x, key_length, mode="edge") for x in ids),
    )
