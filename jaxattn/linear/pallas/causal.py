"""Causal linear attention in one sweep over the chunks, with the state in VMEM."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxattn.core.pallas.layout import Blocks, arranged, compiler_params, store
from jaxattn.core.pallas.products import as_row, nn, nt, tn
from jaxattn.linear.pallas.cost import cost_estimate, products
from jaxattn.linear.pallas.factors import LOWEST, Place, causal_factors
from jaxattn.linear.pallas.plan import Plan, Tokens, projection_specs
from jaxattn.linear.pallas.reading import read_keys, read_query, valid_tokens
from jaxattn.linear.projection import Projection
from jaxattn.linear.sums import inverse_of

# The rows of `Kept.rows`.
WEIGHT, TOP, SEGMENT, ROWS = 0, 1, 2, 8


class Kept(NamedTuple):
    """The states before all chunks, all that the gradient needs besides the arguments.

    total (B, K, chunks, V, F): Σ_j e^(c_j − top) v_j φ_j'; rows (B, K, chunks, 8, F): the sums of the weights, the
    largest log weight, the segment.
    """

    total: Any
    rows: Any


class _State(NamedTuple):
    """Scratch: total (V, F), weight (F, 1), top (1, 1), segment (1, 1)."""

    total: Any
    weight: Any
    top: Any
    segment: Any


def read_ids(plan: Plan, tokens: Tokens, n: Any) -> Array | None:
    """(1, C) numbers of segments, −1 for padding; None without segments."""
    if tokens.ids is None:
        return None
    ids, valid = tokens.ids[...], valid_tokens(plan, n, plan.length)
    return ids if valid is None else jnp.where(valid, ids, -1)


def causal_forward(
    plan: Plan, tokens: Tokens, projection: Projection, keep: bool
) -> tuple[Array, Kept | None]:
    """The output by `arrange`, and the states before all chunks if they are to be kept."""
    batch, heads = tokens.key.shape[:2]
    chunks, features, width = plan.num_chunks(plan.length), plan.num_features, plan.value_width
    blocks, lead = Blocks(plan.chunk), (batch, heads, chunks)
    out = arranged((batch, plan.length, heads, plan.groups, width), tokens.value.dtype)
    kept = specs = None
    if keep:
        kept = Kept(*(jax.ShapeDtypeStruct((*lead, n, features), jnp.float32) for n in (width, ROWS)))
        specs = Kept(blocks.state(width, features), blocks.state(ROWS, features))

    def kernel(tokens: Tokens, projection: Projection, out: Any, kept: Kept | None, *scratch: Any) -> None:
        state, n = _State(*scratch), pl.program_id(2)

        @pl.when(n == 0)
        def _() -> None:
            state.total[...] = jnp.zeros_like(state.total)
            state.weight[...] = jnp.zeros_like(state.weight)
            state.top[...] = jnp.full_like(state.top, LOWEST)
            state.segment[...] = jnp.full_like(state.segment, -1)

        if kept is not None:
            kept.total[...] = state.total[...]
            kept.rows[...] = _rows(state)
        _attend(plan, tokens, projection, out, state, n)

    return pl.pallas_call(
        kernel,
        out_shape=(out, kept),
        grid=lead,
        in_specs=(plan.specs(blocks, tokens), projection_specs(projection, heads)),
        out_specs=(blocks.tokens(width, plan.groups), specs),
        scratch_shapes=[
            pltpu.VMEM(shape, jnp.float32) for shape in ((width, features), (features, 1), (1, 1), (1, 1))
        ],
        compiler_params=compiler_params("arbitrary"),
        cost_estimate=cost_estimate(
            plan,
            lead,
            projection,
            (tokens, out, kept),
            keys=products(plan, 2, 1),
            queries=products(plan, 2, 1, (1, 1)),
        ),
        name="causal_linear_attention",
    )(tokens, projection)


def _rows(state: _State) -> Array:
    weight = as_row(state.weight[...])
    others = [jnp.broadcast_to(x[...], weight.shape) for x in (state.top, state.segment)]
    return jnp.concatenate([weight, *others, jnp.zeros((ROWS - 3, weight.shape[1]), jnp.float32)])


def _attend(plan: Plan, tokens: Tokens, projection: Projection, out: Any, state: _State, n: Any) -> None:
    keys, ids = read_keys(plan, tokens, projection, n, learned=False), read_ids(plan, tokens, n)
    place = Place(state.top[...], None if ids is None else state.segment[...])
    factors = causal_factors(keys.log_weight, ids, place)
    narrow = keys.value.dtype
    total, weight, phi_k = state.total[...], state.weight[...], keys.phi.astype(narrow)
    for g in range(plan.groups):
        phi, _ = read_query(plan, tokens, projection, n, g, learned=False)
        weights = tn(phi_k, phi.astype(narrow)) * factors.within
        sums = nn(keys.value, weights.astype(narrow))
        sums += nn(total.astype(narrow), phi.astype(narrow)) * factors.before
        whole = weights.sum(axis=0, keepdims=True)
        whole += (weight * phi).sum(axis=0, keepdims=True) * factors.before
        store(out, sums * inverse_of(whole), (g,))
    added = (keys.phi * factors.after).astype(narrow)
    state.total[...] = total * factors.between + nt(keys.value, added)
    state.weight[...] = weight * factors.between + added.astype(jnp.float32).sum(axis=1, keepdims=True)
    state.top[...] = factors.place.top
    if factors.place.segment is not None:
        state.segment[...] = factors.place.segment
