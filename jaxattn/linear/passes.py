"""Forward passes of linear attention over the blocks of one sequence, with features made on the way."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.core.mesh import vary_like
from jaxattn.linear.blocks import causal_block
from jaxattn.linear.heads import in_blocks, joined, over_heads
from jaxattn.linear.plan import Parameters, Plan
from jaxattn.linear.sums import State, Sums, add_keys, divide, product


def tokens_of(x: Call) -> tuple[Array, Array, Array, Array]:
    """(query, key, value, key_bias), all with an axis of tokens before one of heads."""
    return x.query, x.key, x.value, x.key_bias


def key_ids(x: Call) -> Array | None:
    """The segments of keys, which are those of the queries here."""
    return None if x.segment_ids is None else x.segment_ids[1]


def empty_state(plan: Plan, parameters: Parameters, x: Call) -> State:
    """The state of one sequence before its first key, every array with a leading axis of heads."""
    sizes, dtype = (x.key.shape[-2], plan.features.number(parameters, x.key)), x.key_bias.dtype
    return State(
        Sums(jnp.zeros((*sizes, x.value.shape[-1]), dtype), jnp.zeros(sizes, dtype)),
        jnp.full(sizes[:1], -jnp.inf, dtype),
        None,
    )


def finish(plan: Plan, sums: Sums, dtype: Any) -> tuple[Array, Array | None]:
    """The result of a block, means in a dtype, and what the gradient of the division needs besides."""
    return (divide(sums).astype(dtype), sums.weight) if plan.divided else (sums.joined(), None)


def causal_pass(plan: Plan, parameters: Parameters, x: Call, state: State) -> tuple[State, State, Array, Any]:
    """One sequence, forward: (the last state, the states before every block, out, what else the gradient needs)."""

    def head(parameters: Parameters, segments: Array | None, state: State, tokens: Any) -> Any:
        query, key, value, key_bias = tokens
        phi_q, scale_q = plan.features.query(parameters, query, None)
        phi_k, scale_k = plan.features.key(parameters, key, None)
        state, sums = causal_block(
            state, phi_q, phi_k, scale_k + key_bias[:, 0], value, segments, plan.chunk, plan.strict
        )
        out, weight = finish(plan, sums, x.value.dtype)
        return state, (out, (weight, scale_q, scale_k))

    def body(state: State, block: Call) -> Any:
        tokens = plan.operands(tokens_of(block))
        state_after, result = over_heads(plan, head, parameters, key_ids(block), state, tokens)
        return state_after, (state, result)

    ids = key_ids(x)
    if ids is not None:
        # Which segment an empty state belongs to does not matter: every weight on it is 0.
        segment = ids[0] if state.segment is None else state.segment
        state = state._replace(segment=jnp.broadcast_to(segment, state.top.shape))
    state = vary_like(state, x, parameters)
    last, (states, (out, kept)) = lax.scan(body, state, in_blocks(x, plan.key_block))
    return last, states, joined(out), joined(kept)


def key_pass(plan: Plan, parameters: Parameters, x: Call, state: State) -> tuple[State, Array]:
    """One sequence: (the state with all its keys, the log scales of their features by block)."""

    def add(parameters: Parameters, _: None, state: State, tokens: Any) -> Any:
        key, value, key_bias = tokens
        phi, scale = plan.features.key(parameters, key, None)
        return add_keys(state, phi, scale + key_bias[:, 0], value), scale

    def body(state: State, block: Any) -> Any:
        return over_heads(plan, add, parameters, None, state, plan.operands(block))

    # No features outlive their block.
    body = jax.checkpoint(body, prevent_cse=False)
    return lax.scan(body, vary_like(state, x, parameters), in_blocks(tokens_of(x)[1:], plan.key_block))


def whole_pass(plan: Plan, parameters: Parameters, x: Call, state: State) -> tuple[State, Array, Any]:
    """One sequence, forward, every query meeting every key, and those summed up in `state`."""

    def ask(parameters: Parameters, _: None, state: State, query: Array) -> Any:
        phi, scale = plan.features.query(parameters, query, None)
        phi = phi.astype(query.dtype)
        sums = Sums(
            product("lgf,fv->lgv", phi, state.sums.total), product("lgf,f->lg", phi, state.sums.weight)
        )
        return (), (*finish(plan, sums, x.value.dtype), scale)

    state, scale_k = key_pass(plan, parameters, x, state)
    _, (out, weight, scale_q) = lax.scan(
        lambda _, query: (None, over_heads(plan, ask, parameters, None, state, plan.operands(query))[1]),
        None,
        in_blocks(x.query, plan.query_block),
    )
    return state, joined(out), joined((weight, scale_q, scale_k))
