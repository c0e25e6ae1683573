"""The gradient of causal linear attention in one sweep backwards over the chunks; features are recomputed."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxattn.core.pallas.layout import Blocks, compiler_params, store
from jaxattn.core.pallas.products import as_column, nn, nt, tn
from jaxattn.linear.pallas.causal import SEGMENT, TOP, WEIGHT, Kept, read_ids
from jaxattn.linear.pallas.cost import cost_estimate, products
from jaxattn.linear.pallas.factors import Place, causal_factors
from jaxattn.linear.pallas.plan import Plan, Tokens, projection_specs
from jaxattn.linear.pallas.projected import add_gradient, gradient_shapes, gradient_specs
from jaxattn.linear.pallas.reading import read, read_keys, read_query
from jaxattn.linear.projection import Projection
from jaxattn.linear.sums import inverse_of


def causal_gradient(
    plan: Plan, tokens: Tokens, projection: Projection, kept: Kept, grad: Array, learned: bool
) -> tuple[Tokens, Projection]:
    """Cotangents of the tokens, and of the projection (B, K, …) if it is learned, from that of the output."""
    batch, heads = tokens.key.shape[:2]
    chunks, features, width = plan.num_chunks(plan.length), plan.num_features, plan.value_width
    blocks = Blocks(plan.chunk, place=lambda n: chunks - 1 - n)
    asked = tokens._replace(ids=None)

    def kernel(
        tokens: Tokens,
        projection: Projection,
        kept: Kept,
        grad: Any,
        of_tokens: Tokens,
        of_projection: Projection,
        *state: Any,
    ) -> None:
        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            for ref in (*state, *jax.tree.leaves(of_projection)):
                ref[...] = jnp.zeros_like(ref)

        n = chunks - 1 - pl.program_id(2)
        _pull(plan, tokens, projection, kept, grad, of_tokens, of_projection, state, n)

    shapes = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), asked),
        gradient_shapes(projection, batch, heads, learned),
    )
    grid = (batch, heads, chunks)
    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=grid,
        in_specs=(
            plan.specs(blocks, tokens),
            projection_specs(projection, heads),
            Kept(*(blocks.state(*x.shape[3:]) for x in kept)),
            blocks.tokens(width, plan.groups),
        ),
        out_specs=(plan.specs(blocks, asked), gradient_specs(projection, blocks, learned)),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in ((width, features), (features, 1))],
        compiler_params=compiler_params("arbitrary"),
        cost_estimate=cost_estimate(
            plan,
            grid,
            projection,
            (tokens, kept, grad, shapes),
            keys=products(plan, 3 + learned, 2),
            queries=products(plan, 3 + learned, 2, (3, 2)),
        ),
        name="causal_linear_attention_gradient",
    )(tokens, projection, kept, grad)


def _pull(
    plan: Plan,
    tokens: Tokens,
    projection: Projection,
    kept: Kept,
    grad: Any,
    of_tokens: Tokens,
    of_projection: Projection,
    of_state: Any,
    n: Any,
) -> None:
    learned = bool(jax.tree.leaves(of_projection))
    keys, ids = read_keys(plan, tokens, projection, n, learned), read_ids(plan, tokens, n)
    rows, narrow = kept.rows[...], keys.value.dtype
    weight = as_column(rows[WEIGHT : WEIGHT + 1])
    place = Place(*(rows[i : i + 1, :1] for i in (TOP, SEGMENT)))
    factors = causal_factors(keys.log_weight, ids, place)
    total, phi_k = kept.total[...].astype(narrow), keys.phi.astype(narrow)
    of_total, of_weight = (ref[...] for ref in of_state)
    of_phi_k = (tn(of_total.astype(narrow), keys.value) + of_weight) * factors.after
    of_value = nn(of_total.astype(narrow), phi_k) * factors.after
    of_total, of_weight = of_total * factors.between, of_weight * factors.between
    for g in range(plan.groups):
        phi, pull = read_query(plan, tokens, projection, n, g, learned)
        of_out = read(plan, grad, plan.value_width, n, g)
        weights = tn(phi_k, phi.astype(narrow)) * factors.within
        whole = weights.sum(axis=0, keepdims=True)
        whole += (weight * phi).sum(axis=0, keepdims=True) * factors.before
        divided = inverse_of(whole)
        near, far = tn(keys.value, of_out), tn(total, of_out)
        # What makes the weighted mean of `near + delta` vanish: the cotangent of the sum of the weights.
        delta = (weights * near).sum(axis=0, keepdims=True)
        delta += (phi * far).sum(axis=0, keepdims=True) * factors.before
        delta *= -divided
        of_weights = ((near + delta) * (factors.within * divided)).astype(narrow)
        earlier = factors.before * divided
        asked = (phi * earlier).astype(narrow)
        of_total += nt(of_out, asked)
        of_weight += (asked.astype(jnp.float32) * delta).sum(axis=1, keepdims=True)
        of_phi_k += nt(phi.astype(narrow), of_weights)
        of_value += nt(of_out, (weights * divided).astype(narrow))
        gradient = pull(nn(phi_k, of_weights) + (far + delta * weight) * earlier, None)
        store(of_tokens.query, gradient.x, (g,))
        add_gradient(of_projection, gradient, is_key=False)
    for ref, x in zip(of_state, (of_total, of_weight), strict=True):
        ref[...] = x
    of_log_weight = (keys.phi * of_phi_k).sum(axis=0, keepdims=True)
    gradient = keys.pull(of_phi_k, of_log_weight)
    store(of_tokens.key, gradient.x)
    store(of_tokens.value, of_value)
    add_gradient(of_projection, gradient, is_key=True)
    if of_tokens.bias is not None:
        of_tokens.bias[...] = of_log_weight
