"""From checked arguments of any shape to the blocks of the linear-attention core, and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.grouped import Call
from jaxattn.linear.blocks import ratio, segmented_cummax
from jaxattn.linear.chunked import Features, Operands, Plan, attend

# Tokens of a block. On a CPU it should stay in cache.
_CPU_BLOCK = 2048
_ACCELERATOR_BLOCK = 16384
# Of a chunk: a larger one has larger products, and more pairs that meet one by one.
_CPU_CHUNK, _ACCELERATOR_CHUNK = 64, 128


class FeatureFunctions(NamedTuple):
    """How queries and keys become features; see `Plan`."""

    query: Features
    key: Features
    by_head: tuple[bool, ...] = ()


def _identity(_: Sequence[Array], x: Array, __: Array | None) -> tuple[Array, Array]:
    return x, jnp.zeros(x.shape[:-1], x.dtype)


IDENTITY = FeatureFunctions(_identity, _identity)


def check_chunk_size(chunk_size: int | None) -> None:
    """Raises unless `chunk_size` is None or a positive int."""
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size must be None or a positive integer; got {chunk_size!r}.")


def attend_call(
    call: Call,
    features: FeatureFunctions,
    parameters: Sequence[Array],
    is_causal: bool,
    chunk_size: int | None,
) -> Array:
    """(B, T, N, V) weighted means."""
    parameters = per_key_head(parameters, features, call.key.shape[2])
    if call.segments is not None and not is_causal:
        call, features, parameters = _with_features(call, features, parameters), IDENTITY, []
    order = None
    if call.segments is not None:
        # Equal ids become neighbours; a stable sort keeps the order inside each segment, which is all that
        # causality means there.
        order = jnp.argsort(call.segments, axis=1, stable=True)
        call = jax.tree.map(lambda x: _take(x, order), call)
    if is_causal or call.segments is None:
        out = _attend(call, features, parameters, is_causal, chunk_size)
    else:
        out = _attend_both_ways(call, chunk_size)
    if order is not None:
        out = _take(out, jnp.argsort(order, axis=1))
    return out.reshape(*out.shape[:2], -1, out.shape[-1])


def per_key_head(parameters: Sequence[Array], features: FeatureFunctions, heads: int) -> list[Array]:
    """The parameters with one set for each of `heads`: repeated where keys were repeated for a group of queries."""
    found = {p.shape[0] for p, by_head in zip(parameters, features.by_head, strict=True) if by_head}
    if any(heads % count for count in found):
        raise ValueError(
            f"feature_map must have parameters for {heads} heads, or one set for all; got {found}."
        )
    return [
        jnp.repeat(p, heads // p.shape[0], axis=0) if by_head else p
        for p, by_head in zip(parameters, features.by_head, strict=True)
    ]


def _take(x: Array, order: Array) -> Array:
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)


def _with_features(call: Call, features: FeatureFunctions, parameters: Sequence[Array]) -> Call:
    """The call with features in place of queries and keys."""
    axes = [0 if by_head else None for by_head in features.by_head]
    phi_q, _ = jax.vmap(features.query, (axes, 2, None), 2)(parameters, call.query, None)
    phi_k, scale = jax.vmap(features.key, (axes, 2, None), 2)(parameters, call.key, None)
    return call._replace(query=phi_q, key=phi_k, key_bias=call.key_bias + scale)


def _attend(
    call: Call,
    features: FeatureFunctions,
    parameters: Sequence[Array],
    is_causal: bool,
    chunk_size: int | None,
    *,
    strict: bool = False,
    divided: bool = True,
) -> Array:
    length = call.query.shape[1]
    if is_causal:
        call = _keys_like_queries(call)
    plan = make_plan(
        features, length, call.key.shape[1], is_causal, chunk_size, strict=strict, divided=divided
    )
    query_length, key_length = (
        -(-x.shape[1] // block) * block
        for x, block in ((call.query, plan.query_block), (call.key, plan.key_block))
    )
    out = attend(plan, list(parameters), pad(call, query_length, key_length))
    return out[:, :length]


def make_plan(
    features: FeatureFunctions,
    length: int,
    key_length: int,
    is_causal: bool,
    chunk_size: int | None,
    *,
    strict: bool = False,
    divided: bool = True,
) -> Plan:
    """Block and chunk sizes for the lengths and the platform."""
    one_by_one = _on_cpu()

    def block(length: int, multiple: int = 1) -> int:
        limit = _CPU_BLOCK if one_by_one else _ACCELERATOR_BLOCK
        count = -(-length // limit)
        return -(-length // (count * multiple)) * multiple

    # As many chunks as `chunk_size` asks for, but of equal size, so that little is padded.
    chunks = -(-length // (chunk_size or (_CPU_CHUNK if one_by_one else _ACCELERATOR_CHUNK)))
    chunk = -(-length // chunks) if is_causal else 1
    query_block = block(length, chunk)
    return Plan(
        query_features=features.query,
        key_features=features.key,
        by_head=features.by_head,
        is_causal=is_causal,
        strict=strict,
        divided=divided,
        query_block=query_block,
        key_block=query_block if is_causal else block(key_length),
        chunk=chunk,
        one_by_one=one_by_one,
    )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _keys_like_queries(call: Call) -> Call:
    """As many keys as queries: later keys are seen by nobody, missing ones are removed keys."""
    length, key_length = call.query.shape[1], call.key.shape[1]
    if key_length > length:
        key, value, key_bias = (x[:, :length] for x in call[1:4])
        return call._replace(key=key, value=value, key_bias=key_bias)
    return Call(*pad(call, length, length)) if key_length < length else call


def pad(call: Call, query_length: int, key_length: int) -> Operands:
    """Adds queries nobody reads and keys nobody sees."""

    def widen(x: Array, length: int, **options: Any) -> Array:
        missing = length - x.shape[1]
        if missing == 0:
            return x
        return jnp.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)], **options)

    return Operands(
        query=widen(call.query, query_length),
        key=widen(call.key, key_length),
        value=widen(call.value, key_length),
        key_bias=widen(call.key_bias, key_length, constant_values=-jnp.inf),
        segments=None if call.segments is None else widen(call.segments, key_length, mode="edge"),
    )


def _attend_both_ways(call: Call, chunk_size: int | None) -> Array:
    """Keys up to each query plus keys after it, inside (contiguous) segments; features are made already."""
    assert call.segments is not None
    backward = jax.tree.map(lambda x: jnp.flip(x, axis=1), call)
    so_far = _attend(call, IDENTITY, [], True, chunk_size, divided=False)
    to_come = jnp.flip(_attend(backward, IDENTITY, [], True, chunk_size, strict=True, divided=False), axis=1)
    # The two sums are relative to the largest key bias on their side of the query.
    running_max = jax.vmap(jax.vmap(segmented_cummax, (1, None), 1))  # over batch and heads
    left = running_max(call.key_bias, call.segments)
    right = jnp.flip(running_max(backward.key_bias, backward.segments), axis=1)
    top = jnp.maximum(left, right)
    left, right = (jax.lax.stop_gradient(ratio(x, top))[..., None, None] for x in (left, right))
    sums = so_far * left + to_come * right
    weight = sums[..., -1:]
    nothing = weight == 0
    return jnp.where(nothing, 0, sums[..., :-1] / jnp.where(nothing, 1, weight))
