"""Linear attention in one sweep over the chunks, with the state of the keys so far in VMEM."""

from typing import Any

from jax.experimental import pallas as pl
from jaxtyping import Array

from jaxattn.core.pallas.layout import Blocks, arranged, compiler_params, store
from jaxattn.linear.pallas.chunk import Chunk
from jaxattn.linear.pallas.cost import cost_estimate, products
from jaxattn.linear.pallas.factors import add_chunk, seen_by_queries
from jaxattn.linear.pallas.plan import Plan, Tokens, projection_specs
from jaxattn.linear.pallas.reading import read_ids, read_keys, read_query
from jaxattn.linear.pallas.states import Kept, kept_shapes, scratch
from jaxattn.linear.projection import Projection


def causal_forward(
    plan: Plan, tokens: Tokens, projection: Projection, keep: bool
) -> tuple[Array, tuple[Kept, ...]]:
    """The output by `arrange`, and the states before all chunks if they are to be kept."""
    out, *states = _sweep(plan, tokens, projection, (), keep, "causal_linear_attention")
    return out, tuple(states)


def segments_forward(
    plan: Plan, tokens: Tokens, projection: Projection, keep: bool
) -> tuple[Array, tuple[Kept, ...]]:
    """Without causality, inside segments: the output, and the states before and after all chunks if they are kept.

    A state before a chunk is of the segment of the last token before it, one after it of that of the first token
    after it. Of all other segments the chunk has all keys or none.
    """
    keys = tokens._replace(query=None)
    _, later = _sweep(plan, keys, projection, (), True, "linear_attention_later_keys")
    out, *states = _sweep(plan, tokens, projection, (later,), keep, "linear_attention_in_segments")
    return out, (*states, later) if keep else ()


def _sweep(
    plan: Plan, tokens: Tokens, projection: Projection, later: tuple[Kept, ...], keep: bool, name: str
) -> tuple[Any, ...]:
    """The output and the states before all chunks; without queries, in reverse, the states after them."""
    batch, heads = tokens.key.shape[:2]
    chunks, reverse = plan.num_chunks(plan.length), tokens.query is None
    blocks = Blocks(plan.chunk, place=lambda n: chunks - 1 - n) if reverse else Blocks(plan.chunk)
    out: Any = None
    out_specs = None
    if not reverse:
        out = arranged((batch, plan.length, heads, plan.groups, plan.value_width), tokens.value.dtype)
        out_specs = blocks.tokens(plan.value_width, plan.groups)
    shapes = (kept_shapes(plan, batch, heads),) if keep else ()

    def kernel(tokens: Tokens, projection: Projection, later: Any, out: Any, *rest: Any) -> None:
        *kept, ref = rest

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            ref.clear()

        n, state = blocks.place(pl.program_id(2)), ref.load()
        for x in kept:
            x.store(state)
        keys, ids = read_keys(plan, tokens, projection, n, learned=False), read_ids(plan, tokens, n)
        if out is not None:
            states = [state, *(x.load() for x in later)]
            seen = seen_by_queries(keys.log_weight, ids, [x.place for x in states], is_causal=not later)
            chunk = Chunk(keys, states, seen)
            for g in range(plan.groups):
                phi = read_query(plan, tokens, projection, n, g, learned=False)[0]
                store(out, chunk.attend(phi), (g,))
        ref.store(state.with_keys(keys, add_chunk(keys.log_weight, ids, state.place, reverse)))

    grid = (batch, heads, chunks)
    return pl.pallas_call(
        kernel,
        out_shape=(out, *shapes),
        grid=grid,
        in_specs=(
            plan.specs(blocks, tokens),
            projection_specs(projection, heads),
            tuple(x.specs(blocks) for x in later),
        ),
        out_specs=(out_specs, *(x.specs(blocks) for x in shapes)),
        scratch_shapes=[scratch(plan, with_place=True)],
        compiler_params=compiler_params("arbitrary"),
        cost_estimate=cost_estimate(
            plan,
            grid,
            projection,
            (tokens, later, out, shapes),
            keys=products(plan, 2, 1),
            queries=0 if reverse else products(plan, 2, 1 + len(later), (1, 1)),
        ),
        name=name,
    )(tokens, projection, later)
