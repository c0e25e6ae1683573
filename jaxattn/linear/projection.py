"""Features that follow from one product with a dense matrix, which fused kernels can make on the chip."""

from typing import Any, Literal, NamedTuple


class Kind(NamedTuple):
    """What features are of the products u = W x.

    Attributes:
        name: "exponential", e^(u + offset − |N x|²/2); "trigonometric", e^(offset + |N x|²/2) [cos u, sin u];
            "given", x itself.
        square: |N x|² is this times |x|² where there is no N.
        with_scale: whether keys keep their log scale; else every key's largest feature is 1.
    """

    name: Literal["exponential", "trigonometric", "given"]
    square: float = 1.0
    with_scale: bool = True

    def num_features(self, projection: "Projection", width: int) -> int:
        """F, for tokens of this width."""
        if projection.query is None:
            return width
        return projection.query.shape[1] * (2 if self.name == "trigonometric" else 1)


class Projection(NamedTuple):
    """The arrays of a kind, each with a leading axis of heads, 1 where they share them.

    query (heads, M, D) and key (heads, M, D): W of queries and of keys; offset (heads, M, 1); norm (heads, D, D): N
    of keys, None for a multiple of the identity. All None for features that are given.
    """

    query: Any = None
    key: Any = None
    offset: Any = None
    norm: Any = None
