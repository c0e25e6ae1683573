"""Linear attention over blocks of tokens, with features that are made on the way and made again backward."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from jaxattn.linear.blocks import (
    State,
    add_keys,
    causal_block,
    causal_block_gradient,
    divide,
    divide_gradient,
    keys_gradient,
)

# (parameter arrays of one head, x (..., D), log scale or None) -> features (..., F) of magnitude about 1 at most and
# their log scale (...). Backward, the scale that came out forward is given again: it need not be searched for twice.
Features = Callable[[Sequence[Array], Array, Array | None], tuple[Array, Array]]
Parameters = Sequence[Array]


class Plan(NamedTuple):
    """What is known at trace time.

    Attributes:
        query_features: makes features of queries, of which only the direction matters.
        key_features: makes features of keys.
        by_head: for every parameter array, whether its first axis counts key/value heads.
        is_causal: whether query i meets keys up to i only.
        strict: whether it does not meet key i itself (with is_causal).
        divided: whether the result is the weighted mean; else the weighted sums (…, V + 1).
        query_block: queries worked on at a time.
        key_block: keys worked on at a time; the same if causal.
        chunk: divides the block; inside a chunk causal pairs meet one by one.
        one_by_one: whether batch and heads are taken one after the other, which suits the products of a CPU;
            else all at once.
    """

    query_features: Features
    key_features: Features
    by_head: tuple[bool, ...]
    is_causal: bool
    strict: bool
    divided: bool
    query_block: int
    key_block: int
    chunk: int
    one_by_one: bool


class Operands(NamedTuple):
    """query (B, T, K, G, D), key (B, S, K, D), value (B, S, K, V), key_bias (B, S, K), segments (B, T) or None.

    T and S are multiples of their blocks; float32 (or float64) but for the segments.
    """

    query: Array
    key: Array
    value: Array
    key_bias: Array
    segments: Array | None


def _over_heads(
    plan: Plan, function: Callable[..., Any], parameters: Parameters, shared: Any, heads: Any, tokens: Any
):
    """`function(parameters, shared, heads, tokens) -> (heads, tokens)` of one head, over all heads.

    Heads are axis 0 of `heads` and of the parameters that have them, and axis 1 of `tokens`.
    """
    split = [x if by_head else None for x, by_head in zip(parameters, plan.by_head, strict=True)]
    common = [None if by_head else x for x, by_head in zip(parameters, plan.by_head, strict=True)]

    def one(split: Any, heads: Any, tokens: Any) -> Any:
        return function(
            [a if b is None else b for a, b in zip(common, split, strict=True)], shared, heads, tokens
        )

    if not plan.one_by_one:
        return jax.vmap(one, (0, 0, 1), (0, 1))(split, heads, tokens)
    count = jax.tree.leaves(tokens)[0].shape[1]
    results = []
    for n in range(count):
        first, second = (partial(lax.index_in_dim, index=n, axis=axis, keepdims=False) for axis in (0, 1))
        results.append(
            one(jax.tree.map(first, split), jax.tree.map(first, heads), jax.tree.map(second, tokens))
        )
    leading, following = zip(*results, strict=True)
    return (
        jax.tree.map(lambda *xs: jnp.stack(xs, 0), *leading),
        jax.tree.map(lambda *xs: jnp.stack(xs, 1), *following),
    )


def over_batch(plan: Plan, function: Callable[[Any], Any], tree: Any) -> Any:
    """`function` of one sequence, over the leading axis of all arrays."""
    if not plan.one_by_one:
        return jax.vmap(function)(tree)
    if jax.tree.leaves(tree)[0].shape[0] == 1:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], tree)))
    return lax.map(function, tree)


def _blocks(tree: Any, block: int) -> Any:
    """(T, ...) -> (T / block, block, ...)."""
    return jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), tree)


def _joined(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def empty_state(plan: Plan, parameters: Parameters, x: Operands) -> State:
    """The state of one sequence before its first key, every array with a leading axis of heads."""
    heads, width = x.key.shape[-2:]
    one = [p[0] if by_head else p for p, by_head in zip(parameters, plan.by_head, strict=True)]
    features = jax.eval_shape(plan.key_features, one, jax.ShapeDtypeStruct((1, width), x.key.dtype), None)[0]
    return State(
        jnp.zeros((heads, features.shape[-1], x.value.shape[-1] + 1), x.value.dtype),
        jnp.full((heads,), -jnp.inf, x.value.dtype),
        None,
    )


def _finish(plan: Plan, sums: Array) -> tuple[Array, Array | None]:
    """The result of a block, and what the gradient of the division needs besides."""
    return divide(sums) if plan.divided else (sums, None)


def _grad_sums(plan: Plan, grad: Array, out: Array, weight: Array | None) -> Array:
    return grad if weight is None else divide_gradient(grad, out, weight)


def causal_pass(
    plan: Plan, parameters: Parameters, x: Operands, state: State
) -> tuple[State, State, Array, Any]:
    """One sequence, forward: (the last state, the states before every block, out, what else the gradient needs)."""

    def head(parameters: Parameters, segments: Array | None, state: State, tokens: Any) -> Any:
        query, key, value, key_bias = tokens
        phi_q, scale_q = plan.query_features(parameters, query, None)
        phi_k, scale_k = plan.key_features(parameters, key, None)
        state, sums = causal_block(
            state, phi_q, phi_k, scale_k + key_bias, value, segments, plan.chunk, plan.strict
        )
        out, weight = _finish(plan, sums)
        return state, (out, (weight, scale_q, scale_k))

    def body(state: State, block: Operands) -> Any:
        state_after, result = _over_heads(plan, head, parameters, block.segments, state, block[:4])
        return state_after, (state, result)

    if x.segments is not None:
        # No segment has the id of this one: the state is empty, and every weight on it is 0 anyway.
        state = state._replace(segment=jnp.broadcast_to(x.segments[0], state.top.shape))
    last, (states, (out, kept)) = lax.scan(body, state, _blocks(x, plan.key_block))
    return last, states, _joined(out), _joined(kept)


def _whole_pass(plan: Plan, parameters: Parameters, x: Operands) -> tuple[State, Array, Any]:
    """One sequence, forward, every query meeting every key."""

    def add(parameters: Parameters, _: None, state: State, tokens: Any) -> Any:
        key, value, key_bias = tokens
        phi, scale = plan.key_features(parameters, key, None)
        return add_keys(state, phi, scale + key_bias, value), scale

    def ask(parameters: Parameters, _: None, state: State, query: Array) -> Any:
        phi, scale = plan.query_features(parameters, query, None)
        return (), (*_finish(plan, phi @ state.total), scale)

    state, scale_k = lax.scan(
        lambda state, block: _over_heads(plan, add, parameters, None, state, block),
        empty_state(plan, parameters, x),
        _blocks(x[1:4], plan.key_block),
    )
    _, (out, weight, scale_q) = lax.scan(
        lambda _, query: (None, _over_heads(plan, ask, parameters, None, state, query)[1]),
        None,
        _blocks(x.query, plan.query_block),
    )
    return state, _joined(out), _joined((weight, scale_q, scale_k))


def _vjp(
    features: Features, parameters: Parameters, x: Array, scale: Array, learned: bool
) -> tuple[tuple[Array, Array], Any]:
    """Features and log scale, and their transpose: (phi, scale) cotangents -> (parameter cotangents, x cotangent)."""
    if learned:
        return jax.vjp(lambda parameters, x: features(parameters, x, scale), parameters, x)
    values, vjp = jax.vjp(lambda x: features(parameters, x, scale), x)
    return values, lambda cotangent: ([], *vjp(cotangent))


def _plus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _causal_gradient(plan: Plan, learned: bool, parameters: Parameters, residuals: Any, grad: Array) -> Any:
    x, states, out, kept = residuals

    def head(parameters: Parameters, segments: Array | None, heads: Any, tokens: Any) -> Any:
        (grad_total, grad_parameters), state = heads
        (query, key, value, key_bias), (out, (weight, scale_q, scale), grad) = tokens
        (phi_q, _), query_vjp = _vjp(plan.query_features, parameters, query, scale_q, learned)
        (phi_k, scale), key_vjp = _vjp(plan.key_features, parameters, key, scale, learned)
        grad_total, grad_phi_q, grad_phi_k, grad_log_weight, grad_value = causal_block_gradient(
            state, phi_q, phi_k, scale + key_bias, value, segments, plan.chunk, plan.strict,
            grad_total, _grad_sums(plan, grad, out, weight),
        )  # fmt: skip
        from_query, grad_query = query_vjp((grad_phi_q, jnp.zeros_like(scale_q)))
        from_key, grad_key = key_vjp((grad_phi_k, grad_log_weight))
        grad_parameters = _plus(grad_parameters, _plus(from_query, from_key))
        return (grad_total, grad_parameters), (grad_query, grad_key, grad_value, grad_log_weight)

    def body(carry: Any, block: Any) -> Any:
        state, x, tokens = block
        return _over_heads(plan, head, parameters, x.segments, (carry, state), (x[:4], tokens))

    first = states.total[0]
    start = jnp.zeros_like(first), _zeros(plan, parameters, first.shape[0], learned)
    blocks = states, _blocks(x, plan.key_block), _blocks((out, kept, grad), plan.key_block)
    (_, grad_parameters), grads = lax.scan(body, start, blocks, reverse=True)
    return grad_parameters, _joined(grads)


def _zeros(plan: Plan, parameters: Parameters, heads: int, learned: bool) -> list[Array]:
    """Where the parameters' cotangents add up, one set a head."""
    if not learned:
        return []
    return [
        jnp.zeros(p.shape if by_head else (heads, *p.shape), p.dtype)
        for p, by_head in zip(parameters, plan.by_head, strict=True)
    ]


def _whole_gradient(plan: Plan, learned: bool, parameters: Parameters, residuals: Any, grad: Array) -> Any:
    x, state, out, (weight, scale_q, scale_k) = residuals

    def asked(parameters: Parameters, _: None, heads: Any, tokens: Any) -> Any:
        (grad_total, grad_parameters), state = heads
        query, out, weight, scale, grad = tokens
        (phi, scale), vjp = _vjp(plan.query_features, parameters, query, scale, learned)
        grad_sums = _grad_sums(plan, grad, out, weight)
        # As one plain product: an einsum over two axes would have XLA copy phi into another layout first.
        grad_total += phi.reshape(-1, phi.shape[-1]).T @ grad_sums.reshape(-1, grad_sums.shape[-1])
        from_query, grad_query = vjp((grad_sums @ state.total.T, jnp.zeros_like(scale)))
        return (grad_total, _plus(grad_parameters, from_query)), grad_query

    def added(parameters: Parameters, _: None, heads: Any, tokens: Any) -> Any:
        grad_parameters, grad_total, top = heads
        (key, value, key_bias), scale = tokens
        (phi, scale), vjp = _vjp(plan.key_features, parameters, key, scale, learned)
        grad_phi, grad_log_weight, grad_value = keys_gradient(grad_total, top, phi, scale + key_bias, value)
        from_key, grad_key = vjp((grad_phi, grad_log_weight))
        return _plus(grad_parameters, from_key), (grad_key, grad_value, grad_log_weight)

    start = jnp.zeros_like(state.total), _zeros(plan, parameters, state.top.shape[0], learned)
    (grad_total, grad_parameters), grad_query = lax.scan(
        lambda carry, block: _over_heads(plan, asked, parameters, None, (carry, state), block),
        start,
        _blocks((x.query, out, weight, scale_q, grad), plan.query_block),
    )
    grad_parameters, grads = lax.scan(
        lambda carry, block: _over_heads(
            plan, added, parameters, None, (carry, grad_total, state.top), block
        ),
        grad_parameters,
        _blocks((x[1:4], scale_k), plan.key_block),
    )
    return grad_parameters, (_joined(grad_query), *_joined(grads))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, parameters: Parameters, x: Operands) -> Array:
    """(B, T, K, G, V) weighted means, or (B, T, K, G, V + 1) weighted sums, of the values."""
    return _forward(plan, parameters, x)[0]


def _forward(plan: Plan, parameters: Parameters, x: Operands) -> tuple[Array, Any]:
    def sequence(x: Operands) -> Any:
        if plan.is_causal:
            _, states, out, kept = causal_pass(plan, parameters, x, empty_state(plan, parameters, x))
        else:
            states, out, kept = _whole_pass(plan, parameters, x)
        return states, out, kept

    states, out, kept = over_batch(plan, sequence, x)
    return out, (states, out, kept)


def _attend_forward(plan: Plan, parameters: Any, x: Any) -> tuple[Array, Any]:
    def plain(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))

    # Whether parameters get a gradient at all is known here only; it travels in the structure of the residuals.
    leaves = jax.tree.leaves(parameters, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    learned = () if any(leaf.perturbed for leaf in leaves) else None
    parameters, x = plain(parameters), plain(x)
    out, kept = _forward(plan, parameters, x)
    return out, (learned, parameters, x, kept)


def _attend_backward(plan: Plan, residuals: Any, grad: Any) -> tuple[Any, Operands]:
    learned, parameters, x, (states, out, kept) = residuals
    learned = learned is not None
    if isinstance(grad, SymbolicZero):
        grad = jnp.zeros(grad.shape, grad.dtype)
    gradient = _causal_gradient if plan.is_causal else _whole_gradient

    def sequence(tree: Any) -> Any:
        x, states, out, kept, grad = tree
        return gradient(plan, learned, parameters, (x, states, out, kept), grad)

    grad_parameters, (query, key, value, key_bias) = over_batch(plan, sequence, (x, states, out, kept, grad))
    if learned:
        # One cotangent a sequence and head: heads that share a parameter add up.
        grad_parameters = [
            g.sum(axis=0) if by_head else g.sum(axis=(0, 1))
            for g, by_head in zip(grad_parameters, plan.by_head, strict=True)
        ]
    else:
        grad_parameters = [jnp.zeros_like(p) for p in parameters]
    return grad_parameters, Operands(query, key, value, key_bias, None)


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)
# Compiled once a shape, so that calls outside of any jit do not compile their loops anew.
attend = jax.jit(_attend, static_argnums=0)
