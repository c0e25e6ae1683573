"""What the fused kernels of uniform trees know at trace time, and what they are given."""

from typing import Any, NamedTuple

from jaxattn.core.pallas.layout import Blocks
from jaxattn.tree.pallas.tiling import Tiling


class Tokens(NamedTuple):
    """Queries (or None), keys and values by `arrange`, and bias (B, K, 1, T) or None."""

    query: Any
    key: Any
    value: Any
    bias: Any = None


class Plan(NamedTuple):
    """Everything static about one call.

    Attributes:
        tiling: of the tree.
        length: tokens T.
        width: of queries and keys.
        value_width: of values.
        groups: query heads G a key head.
        scale: factor on the scores.
        include_self: whether a token attends to itself.
        dtype: of the operands of products.
    """

    tiling: Tiling
    length: int
    width: int
    value_width: int
    groups: int
    scale: float
    include_self: bool
    dtype: Any

    @property
    def num_tiles(self) -> int:
        """Tiles, the last of which may reach beyond the tokens."""
        return -(-self.length // self.tiling.chunk)

    @property
    def num_roots(self) -> int:
        """Subtrees with tokens."""
        return -(-self.length // self.tiling.widths[-1])

    def specs(self, tokens: Tokens) -> Tokens:
        """Of the blocks of tokens."""
        blocks = Blocks(self.tiling.chunk)
        return Tokens(
            None if tokens.query is None else blocks.tokens(self.width, self.groups),
            blocks.tokens(self.width),
            blocks.tokens(self.value_width),
            None if tokens.bias is None else blocks.row(),
        )
