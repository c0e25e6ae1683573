"""Linear attention where every query meets every key: one pass over the keys, one over the queries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxattn.core.pallas.layout import Blocks, arranged, compiler_params, store
from jaxattn.core.pallas.products import as_column, as_row, nn, nt
from jaxattn.linear.pallas.cost import cost_estimate, products
from jaxattn.linear.pallas.factors import LOWEST
from jaxattn.linear.pallas.plan import Plan, Tokens, projection_specs
from jaxattn.linear.pallas.reading import read_keys, read_query
from jaxattn.linear.projection import Projection
from jaxattn.linear.sums import inverse_of


class Whole(NamedTuple):
    """Sums over all keys, relative to their largest log weight, or cotangents of them.

    total (B, K, V, F): Σ_j w_j v_j φ_j'; weight (B, K, 1, F): Σ_j w_j φ_j; top (B, K, 1, F): the largest log weight
    in every column.
    """

    total: Any
    weight: Any
    top: Any = None


def whole_specs(plan: Plan, blocks: Blocks) -> Whole:
    """Of the blocks of sums."""
    row = blocks.head(1, plan.num_features)
    return Whole(blocks.head(plan.value_width, plan.num_features), row, row)


def whole_shapes(plan: Plan, batch: int, heads: int) -> Whole:
    """Of sums."""
    row = jax.ShapeDtypeStruct((batch, heads, 1, plan.num_features), jnp.float32)
    total = jax.ShapeDtypeStruct((batch, heads, plan.value_width, plan.num_features), jnp.float32)
    return Whole(total, row, row)


def whole_keys(plan: Plan, tokens: Tokens, projection: Projection) -> Whole:
    """The sums over all keys."""
    batch, heads = tokens.key.shape[:2]
    chunks, blocks = plan.num_chunks(plan.key_length), Blocks(plan.chunk)
    tokens = tokens._replace(query=None)

    def kernel(tokens: Tokens, projection: Projection, sums: Whole, weight: Any, top: Any) -> None:
        n = pl.program_id(2)

        @pl.when(n == 0)
        def _() -> None:
            sums.total[...] = jnp.zeros_like(sums.total)
            weight[...] = jnp.zeros_like(weight)
            top[...] = jnp.full_like(top, LOWEST)

        keys = read_keys(plan, tokens, projection, n, learned=False)
        highest = jnp.maximum(keys.log_weight.max(axis=1, keepdims=True), top[...])
        between = jnp.exp(top[...] - highest)
        added = (keys.phi * jnp.exp(keys.log_weight - highest)).astype(keys.value.dtype)
        sums.total[...] = sums.total[...] * between + nt(keys.value, added)
        weight[...] = weight[...] * between + added.astype(jnp.float32).sum(axis=1, keepdims=True)
        top[...] = highest

        @pl.when(n == chunks - 1)
        def _() -> None:
            sums.weight[...] = as_row(weight[...])
            sums.top[...] = jnp.broadcast_to(top[...], sums.top.shape)

    grid, shapes = (batch, heads, chunks), whole_shapes(plan, batch, heads)
    (sums,) = pl.pallas_call(
        kernel,
        out_shape=(shapes,),
        grid=grid,
        in_specs=(plan.specs(blocks, tokens), projection_specs(projection, heads)),
        out_specs=(whole_specs(plan, blocks),),
        scratch_shapes=[pltpu.VMEM((plan.num_features, 1), jnp.float32), pltpu.VMEM((1, 1), jnp.float32)],
        compiler_params=compiler_params("arbitrary"),
        cost_estimate=cost_estimate(
            plan, grid, projection, (tokens, shapes), keys=products(plan, 2, 1), queries=0
        ),
        name="linear_attention_keys",
    )(tokens, projection)
    return sums


def whole_queries(plan: Plan, query: Array, projection: Projection, sums: Whole, dtype: Any) -> Array:
    """The output by `arrange`."""
    batch, heads = query.shape[:2]
    blocks, tokens = Blocks(plan.chunk), Tokens(query=query)

    def kernel(tokens: Tokens, projection: Projection, sums: Whole, out: Any) -> None:
        n = pl.program_id(2)
        total, weight = sums.total[...].astype(query.dtype), as_column(sums.weight[...])
        for g in range(plan.groups):
            phi, _ = read_query(plan, tokens, projection, n, g, learned=False)
            whole = (weight * phi).sum(axis=0, keepdims=True)
            store(out, nn(total, phi.astype(query.dtype)) * inverse_of(whole), (g,))

    grid = (batch, heads, plan.num_chunks(plan.length))
    out = arranged((batch, plan.length, heads, plan.groups, plan.value_width), dtype)
    return pl.pallas_call(
        kernel,
        out_shape=out,
        grid=grid,
        in_specs=(
            plan.specs(blocks, tokens),
            projection_specs(projection, heads),
            whole_specs(plan, blocks),
        ),
        out_specs=blocks.tokens(plan.value_width, plan.groups),
        compiler_params=compiler_params("arbitrary"),
        cost_estimate=cost_estimate(
            plan, grid, projection, (tokens, sums, out), keys=0, queries=products(plan, 2, 1)
        ),
        name="linear_attention_queries",
    )(tokens, projection, sums)
