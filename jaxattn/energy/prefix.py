"""Attention whose gate depends on query and key: statistics of the prefix that ends at the query."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import is_known
from jaxattn.core.padding import repeat_last
from jaxattn.energy.gate import log_gate
from jaxattn.energy.statistics import Statistics, scale_of, standardize
from jaxattn.softmax import dot_product_attention


def attend_to_prefixes(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K V"],
    energy: Float[Array, "B S N"],
    statistics: Statistics,
    positions: Int[Array, "#B T"],
    *,
    alpha: Array | float,
    tau: Array | float,
    key_bias: Float[Array, "#B S #N"] | None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    segment_ids: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None,
    scale: float | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    logits_soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    implementation: str | None = None,
    query_chunk: int = 256,
) -> Float[Array, "B T N V"]:
    """Attends causally with log g_ij = log sigmoid(alpha ((e_j − mu_i)/sigma_i − tau)) added to the scores.

    Args:
        query: new or all queries.
        key: keys at positions 0 … S − 1.
        value: their values.
        energy: their energies, finite.
        statistics: of the energies up to each query, (B, T, N).
        positions: of the queries among the keys, consecutive in every row, (B or 1, T).
        alpha: steepness, (N,) or a scalar.
        tau: threshold, (N,) or a scalar.
        key_bias: as in `dot_product_attention`.
        mask: as in `dot_product_attention`.
        bias: as in `dot_product_attention`.
        segment_ids: of queries and keys.
        scale: as in `dot_product_attention`.
        local_window_size: as in `dot_product_attention`.
        logits_soft_cap: as in `dot_product_attention`.
        sinks: as in `dot_product_attention`.
        implementation: as in `dot_product_attention`.
        query_chunk: queries whose gates are in memory at once; 256 take 32 MiB per head in float32 at S = 32k.

    Returns:
        The outputs of the queries. Memory O(S) per query chunk, forward and backward; time O(T S).
    """
    length = query.shape[1]
    if length == 0:
        return jnp.zeros((*query.shape[:3], value.shape[-1]), query.dtype)
    by_query = {
        "query": (query, 1),
        "scale": (scale_of(statistics), 1),
        "positions": (positions, 1),
        "ids": (None if segment_ids is None else segment_ids[0], 1),
    }
    fixed = {}
    # An axis of size 1 is shared by all queries and is not cut.
    for name, array in (("mask", mask), ("bias", bias)):
        if array is not None and array.shape[2] == 1 and length > 1:
            fixed[name] = array
        else:
            by_query[name] = (array, 2)
    key_positions = jnp.arange(key.shape[1])
    energy = jnp.moveaxis(energy, 1, 2)[:, :, None, :]  # (B, N, 1, S)

    def attend(chunk: dict[str, Any]) -> Float[Array, "B C N V"]:
        chunk = chunk | fixed
        mask = chunk["mask"]
        if segment_ids is not None:
            same = (chunk["ids"][:, :, None] == segment_ids[1][:, None, :])[:, None]
            mask = same if mask is None else mask & same
        of_query = jax.tree.map(lambda s: jnp.moveaxis(s, 1, 2)[..., None], chunk["scale"])  # (B, N, C, 1)
        # A later key may be any number of sigmas away; 0 keeps its unused gate finite.
        allowed = (key_positions <= chunk["positions"][..., None])[:, None]  # (B or 1, 1, C, S)
        allowed = allowed if mask is None else allowed & mask
        z = jnp.where(allowed, standardize(energy, of_query), 0)
        gate = log_gate(z, _heads_first(alpha), _heads_first(tau))
        return dot_product_attention(
            chunk["query"],
            key,
            value,
            key_bias=key_bias,
            mask=mask,
            bias=gate if chunk["bias"] is None else gate + chunk["bias"],
            scale=scale,
            is_causal=True,
            local_window_size=local_window_size,
            logits_soft_cap=logits_soft_cap,
            sinks=sinks,
            query_offset=chunk["positions"][0, 0] if positions.shape[0] == 1 else chunk["positions"][:, 0],
            implementation=implementation,
        )

    arrays = {name: array for name, (array, _) in by_query.items()}
    if not is_known(length) or length <= query_chunk:
        return attend(arrays)
    cut = {
        name: jax.tree.map(lambda x, axis=axis: _cut(x, axis, query_chunk), array)
        for name, (array, axis) in by_query.items()
    }
    out = lax.map(jax.checkpoint(attend), cut)  # (chunks, B, C, N, V)
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], -1, *out.shape[3:])[:, :length]


def _heads_first(parameter: Array | float) -> Float[Array, "N 1 1"] | Float[Array, "1 1 1"]:
    """A parameter per head, shaped to broadcast against (B, N, T, S)."""
    return jnp.reshape(jnp.asarray(parameter, jnp.float32), (-1, 1, 1))


def _cut(x: Array, axis: int, chunk: int) -> Array:
    """Pads `axis` with its last entry to whole chunks and moves the chunks to the front."""
    count = -(-x.shape[axis] // chunk)
    # The last entry rather than 0: padded queries then compute finite values, and get no cotangent.
    x = repeat_last(x, count * chunk - x.shape[axis], axis)
    x = x.reshape(*x.shape[:axis], count, chunk, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)
