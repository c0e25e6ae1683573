"""Attention with a bias for every pair of tokens, which stands for their relative positions."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.inputs import AttentionInputs
from jaxattn.core.parameters import parameter
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.layers import INIT
from jaxattn.nn.attention import Attention
from jaxattn.recency import alibi_slopes

# MPNet's, whatever its config.json says.
BUCKETS, MAX_DISTANCE = 32, 128


class BiasedAttention(Attention):
    """Attention whose scores get a bias for every pair of tokens: softmax(q kᵀ / sqrt(H) + b) v.

    Only mechanisms that form scores can add it: softmax and cross-correlation, with an energy gate too. Any other
    mechanism raises at the call, unless `drop_relative_terms` is True
    (`model.set_attributes(drop_relative_terms=True)`): then it attends by content alone and, in models that have no
    other positions, ignores the order of the tokens.

    Args:
        num_heads: heads.
        in_features: width D.
        **options: every other argument of `Attention`.
    """

    factor: int
    """The scores' number of terms."""

    def __init__(self, num_heads: int, in_features: int, **options: Any):
        super().__init__(num_heads, in_features, **options)
        self.factor = 1
        self.drop_relative_terms = False

    def __call__(  # type: ignore[override]
        self,
        x: Float[Array, "B T D"],
        *,
        relative_table: Float[Array, "..."],
        positions: Int[Array, "*#B T"] | None = None,
        token_mask: Bool[Array, "B T"] | None = None,
        **given: Any,
    ) -> Float[Array, "B T _"]:
        """Attends over the whole sequence.

        Args:
            x: the layer input.
            relative_table: what the bias is made of.
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
        bias = None
        if "bias" in self.mechanism.takes:
            bias = self._bias(query, key, relative_table)
        elif not self.drop_relative_terms:
            raise ValueError(
                "mechanism must form scores of single pairs, to which this model adds its relative positions; got "
                f"{type(self.mechanism).__name__}. Softmax() and CrossCorrelation() do, with a gate too; or leave "
                "the relative positions out with model.set_attributes(drop_relative_terms=True)."
            )
        # The mechanism divides by sqrt(H).
        query = (query / math.sqrt(self.factor)).astype(query.dtype)
        inputs = AttentionInputs(inputs=x, token_mask=token_mask, bias=bias, **given)
        return self.out(self.mechanism(query, key, value, inputs))

    def _bias(self, query: Array, key: Array, table: Array) -> Float[Array, "#B N T T"]:
        """The bias, in float32; here the table itself."""
        return table


class PairBias(nnx.Module):
    """The bias of every pair of positions, which all layers share: a learned number a bucket and head, or ALiBi's.

    References: Song et al., "MPNet", arXiv 2004.09297; Press et al., "Train short, test long", arXiv 2108.12409, here
    in the symmetric form of JinaBERT, arXiv 2310.19923.
    """

    def __init__(self, config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        table = None
        if config.pair_bias == "buckets":
            shape = (BUCKETS, config.num_heads)
            table = parameter(INIT, rngs.params(), shape, ("length", "heads"), param_dtype)
        self.table, self.num_heads = nnx.data(table), config.num_heads
        self.dropout = nnx.Dropout(0.0, deterministic=True)

    def __call__(self, length: int) -> Float[Array, "1 N T T"]:
        """The bias of texts of a length, in float32."""
        place = np.arange(length)
        if self.table is None:
            distance = np.abs(place[:, None] - place)
            return jnp.asarray(-alibi_slopes(self.num_heads)[:, None, None] * distance, jnp.float32)[None]
        rows = position_buckets(place[:, None] - place)
        return jnp.moveaxis(self.table[...].astype(jnp.float32)[rows], -1, 0)[None]


def position_buckets(distance: np.ndarray) -> np.ndarray:
    """MPNet's bucket of every i − j: 16 a direction, the first 8 one a distance, the others logarithmic up to 128.

    Examples:
        >>> position_buckets(np.array([0, 7, -7, 40, -200])).tolist()
        [0, 7, 23, 12, 31]
    """
    half = BUCKETS // 2
    exact = half // 2
    size = np.abs(distance)
    # In float32 as the models were trained: rounding decides at the edges of buckets.
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(MAX_DISTANCE / exact)
    )
    far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(size < exact, size, far) + half * (distance < 0)
