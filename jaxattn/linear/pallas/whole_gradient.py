"""The gradient of linear attention over all keys: one pass over the queries, one over the keys."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxattn.core.pallas.layout import Blocks, compiler_params, store
from jaxattn.core.pallas.products import as_column, as_row, nn, nt, tn
from jaxattn.linear.pallas.cost import cost_estimate, products
from jaxattn.linear.pallas.plan import Plan, Tokens, projection_specs
from jaxattn.linear.pallas.projected import add_gradient, gradient_shapes, gradient_specs
from jaxattn.linear.pallas.reading import read, read_keys, read_query
from jaxattn.linear.pallas.whole import Whole, whole_shapes, whole_specs
from jaxattn.linear.projection import Projection
from jaxattn.linear.sums import inverse_of


def whole_gradient(
    plan: Plan, tokens: Tokens, projection: Projection, sums: Whole, grad: Array, learned: bool
) -> tuple[Tokens, Projection]:
    """Cotangents of the tokens, and of the projection (B, K, …) if it is learned, from that of the output."""
    of_query, of_sums, of_ours = _of_queries(plan, tokens.query, projection, sums, grad, learned)
    of_tokens, of_theirs = _of_keys(plan, tokens, projection, of_sums._replace(top=sums.top), learned)
    offset = of_theirs.offset + of_ours.offset if learned else None
    return of_tokens._replace(query=of_query), of_theirs._replace(query=of_ours.query, offset=offset)


def _of_queries(
    plan: Plan, query: Array, projection: Projection, sums: Whole, grad: Array, learned: bool
) -> tuple[Array, Whole, Projection]:
    """Cotangents of the queries, the sums and the projection of queries."""
    batch, heads = query.shape[:2]
    chunks, blocks, tokens = plan.num_chunks(plan.length), Blocks(plan.chunk), Tokens(query=query)
    asked = projection._replace(key=None, norm=None)

    def kernel(
        tokens: Tokens,
        projection: Projection,
        sums: Whole,
        grad: Any,
        of_query: Any,
        of_sums: Whole,
        of_projection: Projection,
        of_weight: Any,
    ) -> None:
        n = pl.program_id(2)

        @pl.when(n == 0)
        def _() -> None:
            for ref in (of_sums.total, of_weight, *jax.tree.leaves(of_projection)):
                ref[...] = jnp.zeros_like(ref)

        narrow = query.dtype
        total, weight = sums.total[...].astype(narrow), as_column(sums.weight[...])
        for g in range(plan.groups):
            phi, pull = read_query(plan, tokens, projection, n, g, learned)
            of_out = read(plan, grad, plan.value_width, n, g)
            divided = inverse_of((weight * phi).sum(axis=0, keepdims=True))
            far = tn(total, of_out)
            delta = -(phi * far).sum(axis=0, keepdims=True) * divided
            asked = (phi * divided).astype(narrow)
            of_sums.total[...] += nt(of_out, asked)
            of_weight[...] += (asked.astype(jnp.float32) * delta).sum(axis=1, keepdims=True)
            gradient = pull((far + delta * weight) * divided, None)
            store(of_query, gradient.x, (g,))
            add_gradient(of_projection, gradient, is_key=False)

        @pl.when(n == chunks - 1)
        def _() -> None:
            of_sums.weight[...] = as_row(of_weight[...])

    shapes = (
        jax.ShapeDtypeStruct(query.shape, query.dtype),
        whole_shapes(plan, batch, heads)._replace(top=None),
        gradient_shapes(asked, batch, heads, learned),
    )
    grid = (batch, heads, chunks)
    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=grid,
        in_specs=(
            plan.specs(blocks, tokens),
            projection_specs(projection, heads),
            whole_specs(plan, blocks),
            blocks.tokens(plan.value_width, plan.groups),
        ),
        out_specs=(
            blocks.tokens(plan.width, plan.groups),
            whole_specs(plan, blocks)._replace(top=None),
            gradient_specs(asked, blocks, learned),
        ),
        scratch_shapes=[pltpu.VMEM((plan.num_features, 1), jnp.float32)],
        compiler_params=compiler_params("arbitrary"),
        cost_estimate=cost_estimate(
            plan,
            grid,
            projection,
            (tokens, sums, grad, shapes),
            keys=0,
            queries=products(plan, 3 + learned, 2),
        ),
        name="linear_attention_queries_gradient",
    )(tokens, projection, sums, grad)


def _of_keys(
    plan: Plan, tokens: Tokens, projection: Projection, of_sums: Whole, learned: bool
) -> tuple[Tokens, Projection]:
    """Cotangents of the keys, the values, their bias and the projection of keys; `top` is that of the sums."""
    batch, heads = tokens.key.shape[:2]
    blocks, tokens = Blocks(plan.chunk), tokens._replace(query=None)
    asked = projection._replace(query=None)

    def kernel(
        tokens: Tokens, projection: Projection, of_sums: Whole, of_tokens: Tokens, of_projection: Projection
    ) -> None:
        n = pl.program_id(2)

        @pl.when(n == 0)
        def _() -> None:
            for ref in jax.tree.leaves(of_projection):
                ref[...] = jnp.zeros_like(ref)

        keys = read_keys(plan, tokens, projection, n, learned)
        narrow = keys.value.dtype
        total, after = of_sums.total[...].astype(narrow), jnp.exp(keys.log_weight - of_sums.top[:, :1])
        of_phi = (tn(total, keys.value) + as_column(of_sums.weight[...])) * after
        store(of_tokens.value, nn(total, keys.phi.astype(narrow)) * after)
        of_log_weight = (keys.phi * of_phi).sum(axis=0, keepdims=True)
        gradient = keys.pull(of_phi, of_log_weight)
        store(of_tokens.key, gradient.x)
        add_gradient(of_projection, gradient, is_key=True)
        if of_tokens.bias is not None:
            of_tokens.bias[...] = of_log_weight

    shapes = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tokens),
        gradient_shapes(asked, batch, heads, learned),
    )
    grid = (batch, heads, plan.num_chunks(plan.key_length))
    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=grid,
        in_specs=(
            plan.specs(blocks, tokens),
            projection_specs(projection, heads),
            whole_specs(plan, blocks),
        ),
        out_specs=(plan.specs(blocks, tokens), gradient_specs(asked, blocks, learned)),
        compiler_params=compiler_params("arbitrary"),
        cost_estimate=cost_estimate(
            plan,
            grid,
            projection,
            (tokens, of_sums, shapes),
            keys=products(plan, 3 + learned, 2),
            queries=0,
        ),
        name="linear_attention_keys_gradient",
    )(tokens, projection, of_sums)
