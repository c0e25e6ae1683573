"""DeBERTa's disentangled attention: scores with terms for content and for relative positions."""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.parameters import UNDECAYED, axis_names
from jaxattn.encoders.biased import BiasedAttention
from jaxattn.encoders.config import RelativePositions
from jaxattn.encoders.deberta.relative import relative_rows


class DisentangledAttention(BiasedAttention):
    """DeBERTa's attention: scores have terms for content and for relative positions.

    score_ij = (q_i·k_j + q_i·r^k_d + k_j·r^q_d) / sqrt(H (1 + terms)),   d = bucket(i − j),

    where r^k and r^q are the table of relative positions after the projections of keys and queries (or its own). The
    relative terms are a bias of single pairs, (B, N, T, T); see `BiasedAttention`.

    Args:
        num_heads: heads.
        in_features: width D.
        relative: the terms and the buckets of distances.
        **options: every other argument of `Attention`.

    Reference: He et al., "DeBERTa", arXiv 2006.03654, equation 4; v3 is arXiv 2111.09543.
    """

    def __init__(self, num_heads: int, in_features: int, *, relative: RelativePositions, **options: Any):
        super().__init__(num_heads, in_features, **options)
        self.relative = relative
        self.factor = 1 + len(relative.terms)

        def project() -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                in_features,
                (num_heads, in_features // num_heads),
                kernel_metadata=axis_names("embed", "heads", "head_dim"),
                bias_metadata=axis_names("heads", "head_dim") | UNDECAYED,
                dtype=options["dtype"],
                param_dtype=options["param_dtype"],
                rngs=options["rngs"],
            )

        own = () if relative.shared_projections else relative.terms
        self.position_key = nnx.data(project() if "c2p" in own else None)
        self.position_query = nnx.data(project() if "p2c" in own else None)

    def _bias(self, query: Array, key: Array, table: Array) -> Float[Array, "B N T T"]:
        """(q_i·r^k_d + k_j·r^q_d) / sqrt(H (1 + terms)) for every pair, in float32."""
        relative = self.relative
        rows = relative_rows(query.shape[1], relative)[None, None]
        bias = jnp.zeros((1, 1, 1, 1), jnp.float32)
        if "c2p" in relative.terms:
            positions = (self.position_key or self.key)(table)
            scores = jnp.einsum("BTNH,PNH->BNTP", query, positions, preferred_element_type=jnp.float32)
            bias += jnp.take_along_axis(scores, rows, axis=-1)
        if "p2c" in relative.terms:
            positions = (self.position_query or self.query)(table)
            scores = jnp.einsum("BSNH,PNH->BNSP", key, positions, preferred_element_type=jnp.float32)
            bias += jnp.take_along_axis(scores, rows.swapaxes(-1, -2), axis=-1).swapaxes(-1, -2)
        return bias / math.sqrt(query.shape[-1] * self.factor)
