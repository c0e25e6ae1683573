"""DeBERTa's disentangled attention: scores with terms for content and for relative positions."""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.inputs import AttentionInputs
from jaxattn.core.parameters import UNDECAYED
from jaxattn.encoders.config import RelativePositions
from jaxattn.encoders.deberta.relative import relative_rows
from jaxattn.nn.attention import Attention


class DisentangledAttention(Attention):
    """DeBERTa's attention: scores have terms for content and for relative positions.

    score_ij = (q_i·k_j + q_i·r^k_d + k_j·r^q_d) / sqrt(H (1 + terms)),   d = bucket(i − j),

    where r^k and r^q are the table of relative positions after the projections of keys and queries (or its own). The
    relative terms are a bias of single pairs, (B, N, T, T), which only mechanisms that form scores can add: softmax
    and cross-correlation, with an energy gate too. Any other mechanism raises at the call, unless
    `drop_relative_terms` is True (`model.set_attributes(drop_relative_terms=True)`): then it attends by content alone
    and, since many of these models have no other positions, ignores the order of the tokens.

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
        self.drop_relative_terms = False

        def project() -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                in_features,
                (num_heads, in_features // num_heads),
                kernel_metadata={"axes": ("embed", "heads", "head_dim")},
                bias_metadata={"axes": ("heads", "head_dim"), **UNDECAYED},
                dtype=options["dtype"],
                param_dtype=options["param_dtype"],
                rngs=options["rngs"],
            )

        own = () if relative.shared_projections else relative.terms
        self.position_key = nnx.data(project() if "c2p" in own else None)
        self.position_query = nnx.data(project() if "p2c" in own else None)

    def __call__(  # type: ignore[override]
        self,
        x: Float[Array, "B T D"],
        *,
        relative_table: Float[Array, "P D"],
        positions: Int[Array, "*#B T"] | None = None,
        token_mask: Bool[Array, "B T"] | None = None,
        **given: Any,
    ) -> Float[Array, "B T _"]:
        """Attends over the whole sequence.

        Args:
            x: the layer input.
            relative_table: embeddings of relative positions, 2·span of them.
            positions: must be None.
            token_mask: True at real tokens.
            **given: other fields of `AttentionInputs`, such as a tree.

        Raises:
            ValueError: positions, or a mechanism that forms no scores where `drop_relative_terms` is False.
        """
        if positions is not None:
            raise ValueError(
                f"positions must be None: tokens are told apart by their order; got {positions}."
            )
        if token_mask is not None:
            x = jnp.where(token_mask[..., None], x, 0)
        query, (key, value) = self._queries(x, None), self._keys_and_values(x, None)
        factor = 1 + len(self.relative.terms)
        bias = None
        if "bias" in self.mechanism.takes:
            bias = self._bias(query, key, relative_table) / math.sqrt(query.shape[-1] * factor)
        elif not self.drop_relative_terms:
            raise ValueError(
                f"mechanism must form scores of single pairs, to which DeBERTa adds its relative positions; got "
                f"{type(self.mechanism).__name__}. Softmax() and CrossCorrelation() do, with a gate too; or leave "
                "the relative positions out with model.set_attributes(drop_relative_terms=True)."
            )
        # The mechanism divides by sqrt(H).
        query = (query / math.sqrt(factor)).astype(query.dtype)
        inputs = AttentionInputs(inputs=x, token_mask=token_mask, bias=bias, **given)
        return self.out(self.mechanism(query, key, value, inputs))

    def _bias(self, query: Array, key: Array, table: Array) -> Float[Array, "B N T T"]:
        """q_i·r^k_d + k_j·r^q_d for every pair, in float32."""
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
        return bias
