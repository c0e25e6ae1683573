"""Backward passes of linear attention over the blocks of one sequence; features are recomputed."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.varying import vary_like
from jaxattn.linear.blocks import causal_block_gradient
from jaxattn.linear.heads import in_blocks, joined, over_heads
from jaxattn.linear.passes import key_ids, tokens_of
from jaxattn.linear.plan import Features, Parameters, Plan
from jaxattn.linear.sums import divide_gradient, keys_gradient


def _sums_gradient(plan: Plan, grad: Array, out: Array, weight: Array | None) -> Array:
    return grad if weight is None else divide_gradient(grad, out, weight)


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


def causal_gradient(plan: Plan, learned: bool, parameters: Parameters, residuals: Any, grad: Array) -> Any:
    """Cotangents of the parameters and of (query, key, value, key_bias), of one sequence and `causal_pass`."""
    x, states, out, kept = residuals

    def head(parameters: Parameters, segments: Array | None, heads: Any, tokens: Any) -> Any:
        (grad_total, grad_parameters), state = heads
        (query, key, value, key_bias), (out, (weight, scale_q, scale), grad) = tokens
        (phi_q, _), query_vjp = _vjp(plan.features.query, parameters, query, scale_q, learned)
        (phi_k, scale), key_vjp = _vjp(plan.features.key, parameters, key, scale, learned)
        grad_total, grad_phi_q, grad_phi_k, grad_log_weight, grad_value = causal_block_gradient(
            state, phi_q, phi_k, scale + key_bias[:, 0], value, segments, plan.chunk, plan.strict,
            grad_total, _sums_gradient(plan, grad, out, weight),
        )  # fmt: skip
        from_query, grad_query = query_vjp((grad_phi_q, jnp.zeros_like(scale_q)))
        from_key, grad_key = key_vjp((grad_phi_k, grad_log_weight))
        grad_parameters = _plus(grad_parameters, _plus(from_query, from_key))
        return (grad_total, grad_parameters), (grad_query, grad_key, grad_value, grad_log_weight[:, None])

    def body(carry: Any, block: Any) -> Any:
        state, x, tokens = block
        return over_heads(plan, head, parameters, key_ids(x), (carry, state), (tokens_of(x), tokens))

    first = states.total[0]
    start = jnp.zeros_like(first), _zeros(plan, parameters, first.shape[0], learned)
    start = vary_like(start, residuals, grad, parameters)
    blocks = states, in_blocks(x, plan.key_block), in_blocks((out, kept, grad), plan.key_block)
    (_, grad_parameters), grads = lax.scan(body, start, blocks, reverse=True)
    return grad_parameters, joined(grads)


def _zeros(plan: Plan, parameters: Parameters, heads: int, learned: bool) -> list[Array]:
    """Where the parameters' cotangents add up, one set a head."""
    if not learned:
        return []
    return [
        jnp.zeros(p.shape if by_head else (heads, *p.shape), p.dtype)
        for p, by_head in zip(parameters, plan.features.by_head, strict=True)
    ]


def whole_gradient(plan: Plan, learned: bool, parameters: Parameters, residuals: Any, grad: Array) -> Any:
    """Cotangents of the parameters and of (query, key, value, key_bias), of one sequence and `whole_pass`."""
    x, state, out, (weight, scale_q, scale_k) = residuals

    def asked(parameters: Parameters, _: None, heads: Any, tokens: Any) -> Any:
        (grad_total, grad_parameters), state = heads
        query, out, weight, scale, grad = tokens
        (phi, scale), vjp = _vjp(plan.features.query, parameters, query, scale, learned)
        grad_sums = _sums_gradient(plan, grad, out, weight)
        # As one plain product: an einsum over two axes would have XLA copy phi into another layout first.
        grad_total += phi.reshape(-1, phi.shape[-1]).T @ grad_sums.reshape(-1, grad_sums.shape[-1])
        from_query, grad_query = vjp((grad_sums @ state.total.T, jnp.zeros_like(scale)))
        return (grad_total, _plus(grad_parameters, from_query)), grad_query

    def added(parameters: Parameters, _: None, heads: Any, tokens: Any) -> Any:
        grad_parameters, grad_total, top = heads
        (key, value, key_bias), scale = tokens
        (phi, scale), vjp = _vjp(plan.features.key, parameters, key, scale, learned)
        grad_phi, grad_log_weight, grad_value = keys_gradient(
            grad_total, top, phi, scale + key_bias[:, 0], value
        )
        from_key, grad_key = vjp((grad_phi, grad_log_weight))
        return _plus(grad_parameters, from_key), (grad_key, grad_value, grad_log_weight[:, None])

    start = jnp.zeros_like(state.total), _zeros(plan, parameters, state.top.shape[0], learned)
    start = vary_like(start, residuals, grad, parameters)
    (grad_total, grad_parameters), grad_query = lax.scan(
        lambda carry, block: over_heads(plan, asked, parameters, None, (carry, state), block),
        start,
        in_blocks((x.query, out, weight, scale_q, grad), plan.query_block),
    )
    grad_parameters, grads = lax.scan(
        lambda carry, block: over_heads(plan, added, parameters, None, (carry, grad_total, state.top), block),
        grad_parameters,
        in_blocks((tokens_of(x)[1:], scale_k), plan.key_block),
    )
    return grad_parameters, (joined(grad_query), *joined(grads))
