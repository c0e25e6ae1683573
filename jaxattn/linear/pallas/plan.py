"""What a fused kernel knows at trace time, and what it is given."""

from typing import Any, NamedTuple

import jax

from jaxattn.core.pallas.layout import Blocks, shared
from jaxattn.linear.projection import Kind, Projection


class Tokens(NamedTuple):
    """Queries, keys and values by `arrange`; bias (B, K, 1, S) or None; ids (B, 1, 1, T) float32 or None."""

    query: Any = None
    key: Any = None
    value: Any = None
    bias: Any = None
    ids: Any = None


class Plan(NamedTuple):
    """Everything static about one call.

    Attributes:
        kind: of the features.
        width: of queries and keys.
        value_width: of values.
        groups: query heads G a key head.
        num_features: F.
        length: queries T.
        key_length: keys S, as many if causal.
        chunk: tokens C a chunk.
    """

    kind: Kind
    width: int
    value_width: int
    groups: int
    num_features: int
    length: int
    key_length: int
    chunk: int

    def num_chunks(self, length: int) -> int:
        """Chunks, the last of which may reach beyond the tokens."""
        return -(-length // self.chunk)

    def specs(self, blocks: Blocks, tokens: Tokens) -> Tokens:
        """Of the blocks of tokens."""
        return Tokens(
            query=None if tokens.query is None else blocks.tokens(self.width, self.groups),
            key=None if tokens.key is None else blocks.tokens(self.width),
            value=None if tokens.value is None else blocks.tokens(self.value_width),
            bias=None if tokens.bias is None else blocks.row(),
            ids=None if tokens.ids is None else blocks.row(per_head=False),
        )


def projection_specs(projection: Projection, heads: int) -> Projection:
    """Of a projection, whole in VMEM."""
    return jax.tree.map(lambda x: shared(x, heads), projection)
