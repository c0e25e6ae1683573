"""Linear attention of packed sequences: tokens are sorted by segment, and sums restart with each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.core.sequence import exclusive_scan
from jaxattn.linear.padded import attend_padded
from jaxattn.linear.plan import IDENTITY, FeatureFunctions, Parameters, Tiling
from jaxattn.linear.sums import ratio, segmented_cummax


def check_segments(segment_ids: Any, query: Array, key: Array) -> None:
    """Raises unless the segments, if any, are those of queries and keys alike."""
    if segment_ids is None:
        return
    if isinstance(segment_ids, tuple | list):
        raise ValueError("segment_ids must be one array, for queries and keys alike; got a pair.")
    length, key_length = jnp.shape(query)[-3], jnp.shape(key)[-3]
    if length != key_length:
        raise ValueError(
            f"segment_ids needs as many keys as queries (T = S); got T = {length}, S = {key_length}."
        )


def attend_segments(
    call: Call,
    features: FeatureFunctions,
    parameters: Parameters,
    tiling: Tiling,
    axis_name: str | None = None,
    **options: Any,
) -> Array:
    """(B, T, K, G, V) weighted means inside segments, if any, whose ids may come in any order on a single device.

    For the options see `attend_padded`.
    """

    def attend(call: Call) -> Array:
        if call.is_causal or call.segment_ids is None:
            return attend_padded(call, features, parameters, tiling, axis_name=axis_name, **options)
        return _attend_both_ways(_with_features(call, features, parameters), tiling, axis_name, **options)

    if call.segment_ids is None or axis_name is not None:
        return attend(call)
    return in_order_of_segments(call, attend)


def in_order_of_segments(call: Call, attend: Callable[[Call], Array]) -> Array:
    """What `attend` computes of contiguous segments, for a call whose ids may come in any order."""
    order, inverse = _sort(call.segment_ids[1])
    return _take(attend(_take(call, order)), inverse)


class Order(NamedTuple):
    """order (B, T): of tokens so that segments are contiguous; inverse (B, T); is_there (): whether they are so."""

    order: Array
    inverse: Array
    is_there: Array


def order_of_segments(ids: Array) -> Order:
    """Of ids (B, T); nothing is sorted where they are contiguous."""
    is_there = _are_contiguous(ids)

    def stay(ids: Array) -> tuple[Array, Array]:
        order = lax.broadcasted_iota(jnp.int32, ids.shape, 1)
        return order, order

    order, inverse = lax.cond(is_there, stay, _sort, ids)
    return Order(order, inverse, is_there)


def with_order(order: Order, run: Callable[[Any], tuple[Any, Any]], arrays: Any) -> tuple[Any, Any]:
    """`run(arrays)`, arrays of tokens (B, T, …) and others, with arrays (B, T, …) in this order, of tokens put back.

    Nothing is moved where they come so. Not to be differentiated: what is kept for one way would be for both.
    """

    def moved(arrays: Any) -> tuple[Any, Any]:
        of_tokens, others = run(_take(arrays, order.order))
        return _take(of_tokens, order.inverse), others

    return lax.cond(order.is_there, run, moved, arrays)


def _sort(ids: Array) -> tuple[Array, Array]:
    # Equal ids become neighbours; a stable sort keeps the order inside each segment, which is all that
    # causality means there.
    order = jnp.argsort(ids, axis=1, stable=True).astype(jnp.int32)
    return order, jnp.argsort(order, axis=1).astype(jnp.int32)


def _are_contiguous(ids: Array) -> Array:
    """Whether ids (B, T) do not fall, or fall once, to ids below all others: padding 0 after segments 1, 2, 3."""
    falls = (ids[:, 1:] < ids[:, :-1]).sum(axis=1)
    return ((falls == 0) | ((falls == 1) & (ids[:, -1] < ids[:, 0]))).all()


def number_segments(ids: Array) -> Array:
    """(B, T) float32, the contiguous segments of each row counted from 0."""
    changed = ids[:, 1:] != ids[:, :-1]
    return jnp.pad(jnp.cumsum(changed, axis=1), ((0, 0), (1, 0))).astype(jnp.float32)


def _take(arrays: Any, order: Array) -> Any:
    def take(x: Array) -> Array:
        return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)

    return jax.tree.map(take, arrays)


def _with_features(call: Call, features: FeatureFunctions, parameters: Parameters) -> Call:
    """The call with features in place of queries and keys."""
    axes = (features.axes(), 2, None)
    phi_q, _ = jax.vmap(features.query, axes, 2)(parameters, call.query, None)
    phi_k, scale = jax.vmap(features.key, axes, 2)(parameters, call.key, None)
    return call.replace(query=phi_q, key=phi_k, key_bias=call.key_bias + scale[..., None])


def _attend_both_ways(call: Call, tiling: Tiling, axis_name: str | None, **options: Any) -> Array:
    """Keys up to each query plus keys after it, inside (contiguous) segments; features are made already."""
    forward = call.replace(is_causal=True)
    backward = jax.tree.map(lambda x: jnp.flip(x, axis=1), forward)
    options |= {"divided": False, "axis_name": axis_name}
    so_far = attend_padded(forward, IDENTITY, [], tiling, **options)
    to_come = attend_padded(backward, IDENTITY, [], tiling, strict=True, reverse=True, **options)
    # The two sums are relative to the largest key bias on their side of the query.
    left = _running_max(forward, axis_name)
    right = jnp.flip(_running_max(backward, axis_name, reverse=True), axis=1)
    top = jnp.maximum(left, right)
    left, right = (jax.lax.stop_gradient(ratio(x, top))[..., None] for x in (left, right))
    sums = so_far * left + jnp.flip(to_come, axis=1) * right
    weight = sums[..., -1:]
    nothing = weight == 0
    return jnp.where(nothing, 0, sums[..., :-1] / jnp.where(nothing, 1, weight))


def _running_max(call: Call, axis_name: str | None, reverse: bool = False) -> Array:
    """(B, S, K, 1), over the keys so far of the same segment."""
    over_heads = jax.vmap(segmented_cummax, (1, None), 1)
    ids = call.segment_ids[1]
    top = jax.vmap(over_heads)(call.key_bias[..., 0], ids)
    if axis_name is not None:
        empty = jnp.full_like(top[:, -1], -jnp.inf)
        own = lax.stop_gradient(top[:, -1])
        before, segment = exclusive_scan(
            jnp.maximum, empty, own, axis_name, segment=ids[:, -1], reverse=reverse
        )
        same = (ids == segment[:, None])[..., None]
        top = jnp.where(same, jnp.maximum(top, before[:, None]), top)
    return top[..., None]
