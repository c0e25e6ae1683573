"""Backward passes of linear attention over the blocks of one sequence; features are recomputed."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.mesh import vary_like
from jaxattn.linear.blocks import causal_block_gradient
from jaxattn.linear.heads import in_blocks, joined, over_heads
from jaxattn.linear.passes import key_ids, tokens_of
from jaxattn.linear.plan import Features, Parameters, Plan
from jaxattn.linear.sums import Sums, SumsGradient, inverse_of, keys_gradient, plus, product


def _sums_gradient(grad: Array, weight: Array | None) -> SumsGradient:
    """The cotangents of the sums, from that of the result."""
    if weight is None:
        return SumsGradient(grad[..., :-1], jnp.ones_like(grad[..., -1]), grad[..., -1])
    return SumsGradient(grad, inverse_of(weight), None)


def _vjp(
    features: Features, parameters: Parameters, x: Array, scale: Array, learned: bool
) -> tuple[tuple[Array, Array], Any]:
    """Features and log scale, and their transpose: (phi, scale) cotangents -> (parameter cotangents, x cotangent)."""
    if learned:
        return jax.vjp(lambda parameters, x: features(parameters, x, scale), parameters, x)
    values, vjp = jax.vjp(lambda x: features(parameters, x, scale), x)
    return values, lambda cotangent: ([], *vjp(cotangent))


def _like(grads: Any, arrays: Any) -> Any:
    """Cotangents in the dtypes of what they belong to."""
    return jax.tree.map(lambda grad, x: grad.astype(x.dtype), grads, arrays)


def causal_gradient(plan: Plan, learned: bool, parameters: Parameters, residuals: Any, grad: Array) -> Any:
    """Cotangents of the parameters, of the sums before and of (query, key, value, key_bias), of `causal_pass`."""
    x, states, kept = residuals

    def head(parameters: Parameters, segments: Array | None, heads: Any, tokens: Any) -> Any:
        (grad_state, grad_parameters), state = heads
        (query, key, value, key_bias), (weight, scale_q, scale), grad = tokens
        (phi_q, _), query_vjp = _vjp(plan.features.query, parameters, query, scale_q, learned)
        (phi_k, scale), key_vjp = _vjp(plan.features.key, parameters, key, scale, learned)
        grad_state, grad_phi_q, grad_phi_k, grad_log_weight, grad_value = causal_block_gradient(
            state, phi_q, phi_k, scale + key_bias[:, 0], value, segments, plan.chunk, plan.strict,
            grad_state, _sums_gradient(grad, weight),
        )  # fmt: skip
        from_query, grad_query = query_vjp((grad_phi_q, jnp.zeros_like(scale_q)))
        from_key, grad_key = key_vjp((grad_phi_k, grad_log_weight))
        grad_parameters = plus(grad_parameters, plus(from_query, from_key))
        return (grad_state, grad_parameters), (grad_query, grad_key, grad_value, grad_log_weight[:, None])

    def body(carry: Any, block: Any) -> Any:
        state, x, tokens = block
        tokens = plan.operands((tokens_of(x), *tokens))
        carry, grads = over_heads(plan, head, parameters, key_ids(x), (carry, state), tokens)
        return carry, _like(grads, tokens_of(x))

    first = jax.tree.map(lambda s: jnp.zeros_like(s[0]), states.sums)
    start = first, _zeros(plan, parameters, first.weight.shape[0], learned)
    start = vary_like(start, residuals, grad, parameters)
    blocks = states, in_blocks(x, plan.key_block), in_blocks((kept, grad), plan.key_block)
    (grad_before, grad_parameters), grads = lax.scan(body, start, blocks, reverse=True)
    return grad_parameters, grad_before, joined(grads)


def _zeros(plan: Plan, parameters: Parameters, heads: int, learned: bool) -> list[Array]:
    """Where the parameters' cotangents add up, one set a head."""
    if not learned:
        return []
    return [
        jnp.zeros(p.shape if by_head else (heads, *p.shape), p.dtype)
        for p, by_head in zip(parameters, plan.features.by_head, strict=True)
    ]


def whole_gradient(plan: Plan, learned: bool, parameters: Parameters, residuals: Any, grad: Array) -> Any:
    """Cotangents of the parameters, of the sums and of (query, key, value, key_bias), of `whole_pass`."""
    x, state, (weight, scale_q, scale_k) = residuals

    def asked(parameters: Parameters, _: None, heads: Any, tokens: Any) -> Any:
        (grad_sums, grad_parameters), state = heads
        query, weight, scale, grad = tokens
        (phi, scale), vjp = _vjp(plan.features.query, parameters, query, scale, learned)
        value, factor, delta = grad = _sums_gradient(grad, weight)
        asked = (phi * factor[..., None]).astype(query.dtype)
        grad_phi = product("lgv,fv->lgf", value, state.sums.total)
        delta = grad.of_weight((phi * grad_phi).sum(axis=-1))
        update = Sums(product("lgf,lgv->fv", asked, value), product("lgf,lg->f", asked, delta))
        grad_phi += delta[..., None] * state.sums.weight
        from_query, grad_query = vjp((grad_phi * factor[..., None], jnp.zeros_like(scale)))
        return (plus(grad_sums, update), plus(grad_parameters, from_query)), grad_query

    def added(parameters: Parameters, _: None, heads: Any, tokens: Any) -> Any:
        grad_parameters, grad_sums, top = heads
        (key, value, key_bias), scale = tokens
        (phi, scale), vjp = _vjp(plan.features.key, parameters, key, scale, learned)
        grad_phi, grad_log_weight, grad_value = keys_gradient(
            grad_sums, top, phi, scale + key_bias[:, 0], value
        )
        from_key, grad_key = vjp((grad_phi, grad_log_weight))
        return plus(grad_parameters, from_key), (grad_key, grad_value, grad_log_weight[:, None])

    start = jax.tree.map(jnp.zeros_like, state.sums), _zeros(plan, parameters, state.top.shape[0], learned)
    start = vary_like(start, residuals, grad, parameters)

    def ask(carry: Any, block: Any) -> Any:
        carry, grad = over_heads(plan, asked, parameters, None, (carry, state), plan.operands(block))
        return carry, _like(grad, block[0])

    def add(carry: Any, block: Any) -> Any:
        heads = carry, grad_sums, state.top
        carry, grads = over_heads(plan, added, parameters, None, heads, plan.operands(block))
        return carry, _like(grads, block[0])

    (grad_sums, grad_parameters), grad_query = lax.scan(
        ask,
        start,
        in_blocks((x.query, weight, scale_q, grad), plan.query_block),
    )
    grad_parameters, grads = lax.scan(
        add,
        grad_parameters,
        in_blocks((tokens_of(x)[1:], scale_k), plan.key_block),
    )
    return grad_parameters, grad_sums, (joined(grad_query), *joined(grads))
