"""The gradient of linear attention in sweeps over the chunks; features are recomputed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from jaxattn.core.pallas.layout import Blocks, compiler_params, store
from jaxattn.linear.pallas.chunk import Chunk, Queries
from jaxattn.linear.pallas.cost import cost_estimate, products
from jaxattn.linear.pallas.factors import add_chunk, seen_by_queries
from jaxattn.linear.pallas.handed import Handed
from jaxattn.linear.pallas.plan import Plan, Tokens, projection_specs
from jaxattn.linear.pallas.projected import add_gradient, gradient_shapes, gradient_specs
from jaxattn.linear.pallas.reading import read, read_ids, read_keys, read_query, valid_tokens
from jaxattn.linear.pallas.states import Kept, kept_shapes, scratch
from jaxattn.linear.projection import Projection
from jaxattn.linear.sums import plus


class _Asked(NamedTuple):
    """Arguments whose cotangents are asked for."""

    tokens: Tokens
    projection: Projection


def causal_gradient(
    plan: Plan,
    tokens: Tokens,
    projection: Projection,
    states: tuple[Kept, ...],
    grad: Array,
    learned: bool,
) -> tuple[Tokens, Projection]:
    """Cotangents of the tokens, and of the projection (B, K, …) if it is learned, from that of the output."""
    operands, asked = (plan, tokens, projection, states, grad), _Asked(tokens._replace(ids=None), projection)
    of_tokens, of_projection, _ = _sweep(*operands, learned, asked, None, "causal_linear_attention_gradient")
    return of_tokens, of_projection


def segments_gradient(
    plan: Plan,
    tokens: Tokens,
    projection: Projection,
    states: tuple[Kept, ...],
    grad: Array,
    learned: bool,
) -> tuple[Tokens, Projection]:
    """Likewise without causality, inside segments."""
    operands = plan, tokens, projection, states, grad
    of_query = _Asked(Tokens(query=tokens.query), projection._replace(key=None, norm=None))
    of_keys = _Asked(tokens._replace(query=None, ids=None), projection._replace(query=None))
    name = "linear_attention_in_segments_{}_gradient"
    ours, of_ours, handed = _sweep(*operands, learned, of_query, None, name.format("queries"))
    theirs, of_theirs, _ = _sweep(*operands, learned, of_keys, handed, name.format("keys"))
    offset = of_theirs.offset + of_ours.offset if learned else None
    return theirs._replace(query=ours.query), of_theirs._replace(query=of_ours.query, offset=offset)


def _sweep(
    plan: Plan,
    tokens: Tokens,
    projection: Projection,
    states: tuple[Kept, ...],
    grad: Array,
    learned: bool,
    asked: _Asked,
    handed: Handed | None,
    name: str,
) -> tuple[Tokens, Projection, Handed | None]:
    """Cotangents of what is asked for: in the order of the tokens those of queries, in reverse of keys or of both.

    The sweep carries that of the state which comes to meet it: of the last of `states` in the order of the tokens, of
    the first in reverse.
    """
    batch, heads = tokens.key.shape[:2]
    chunks, groups = plan.num_chunks(plan.length), plan.groups
    to_queries, to_keys = (x is not None for x in (asked.tokens.query, asked.tokens.key))
    blocks = Blocks(plan.chunk, place=lambda n: chunks - 1 - n) if to_keys else Blocks(plan.chunk)
    carried, is_causal = 0 if to_keys else 1, len(states) == 1
    of_next = None
    if not to_keys:
        divisors = jax.ShapeDtypeStruct((batch, heads, 2 * groups, plan.length), jnp.float32)
        of_next = Handed(divisors, kept_shapes(plan, batch, heads))
    if handed is not None:
        states = tuple(x._replace(total=None) for x in states)  # their products are in the divisors

    def kernel(
        tokens: Tokens,
        projection: Projection,
        states: Any,
        grad: Any,
        handed: Handed | None,
        of_tokens: Tokens,
        of_projection: Projection,
        of_next: Handed | None,
        ref: Any,
    ) -> None:
        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            ref.clear()
            for x in jax.tree.leaves(of_projection):
                x[...] = jnp.zeros_like(x)

        n = blocks.place(pl.program_id(2))
        keys, ids = read_keys(plan, tokens, projection, n, learned), read_ids(plan, tokens, n)
        seen_states = [x.load() for x in states]
        places = [x.place for x in seen_states]
        chunk = Chunk(keys, seen_states, seen_by_queries(keys.log_weight, ids, places, is_causal))
        of_state = ref.load()
        if of_next is not None:
            of_next.of_later.store(of_state)
        step = add_chunk(keys.log_weight, ids, places[carried], reverse=not to_keys)
        of_keys = of_state.of_keys(keys, step.keys) if to_keys else None
        if handed is not None:
            later = add_chunk(keys.log_weight, ids, places[1], reverse=True)
            of_keys = plus(of_keys, handed.of_later.load().of_keys(keys, later.keys))
        of_state = of_state.times(step.state)
        for g in range(groups):
            phi, pull = read_query(plan, tokens, projection, n, g, learned)
            queries = Queries(phi, read(plan, grad, plan.value_width, n, g))
            found = chunk.multiply(queries, with_states=handed is None)
            if handed is None:
                divisor = chunk.divide(queries, found)
            else:
                divisor = handed.load(g, groups, valid_tokens(plan, n, plan.length))
            if of_next is not None:
                of_next.store(divisor, g, groups)
            of_state = chunk.of_state(of_state, queries, divisor, carried)
            of_pairs = chunk.of_pairs(found, divisor)
            if to_keys:
                of_keys = plus(of_keys, chunk.of_keys(queries, found, divisor, of_pairs))
            if to_queries:
                gradient = pull(chunk.of_queries(found, divisor, of_pairs), None)
                store(of_tokens.query, gradient.x, (g,))
                add_gradient(of_projection, gradient, is_key=False)
        ref.store(of_state)
        if of_keys is not None:
            of_phi_k, of_value = of_keys
            of_log_weight = (keys.phi * of_phi_k).sum(axis=0, keepdims=True)
            gradient = keys.pull(of_phi_k, of_log_weight)
            store(of_tokens.key, gradient.x)
            store(of_tokens.value, of_value)
            add_gradient(of_projection, gradient, is_key=True)
            if of_tokens.bias is not None:
                of_tokens.bias[...] = of_log_weight

    shapes = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), asked.tokens),
        gradient_shapes(asked.projection, batch, heads, learned),
        of_next,
    )
    grid = (batch, heads, chunks)
    pairs = (1 + to_queries + to_keys, 1 + to_keys)
    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=grid,
        in_specs=(
            plan.specs(blocks, tokens),
            projection_specs(projection, heads),
            tuple(x.specs(blocks) for x in states),
            blocks.tokens(plan.value_width, groups),
            None if handed is None else handed.specs(blocks),
        ),
        out_specs=(
            plan.specs(blocks, asked.tokens),
            gradient_specs(asked.projection, blocks, learned),
            None if of_next is None else of_next.specs(blocks),
        ),
        scratch_shapes=[scratch(plan, with_place=False)],
        compiler_params=compiler_params("arbitrary"),
        cost_estimate=cost_estimate(
            plan,
            grid,
            projection,
            (tokens, states, grad, handed, shapes),
            keys=products(plan, 3 + learned, 2 * len(states)) if to_keys else products(plan, 2, 0),
            queries=products(plan, 3 + learned, 1 + len(states), pairs)
            if to_queries
            else products(plan, 2, 1, pairs),
        ),
        name=name,
    )(tokens, projection, states, grad, handed)
