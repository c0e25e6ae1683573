"""Attention within a window, as in ModernBERT's local layers."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn.nn.attention import Attention


class WindowedAttention(Attention):
    """Attention to the tokens at most `window` away on either side (ModernBERT's local layers).

    A mechanism that cannot mask single pairs of tokens (a tree, random features) attends to the whole text instead.

    Args:
        num_heads: heads.
        in_features: width D.
        window: largest distance to a token attended to.
        **options: every other argument of `Attention`.
    """

    def __init__(self, num_heads: int, in_features: int, *, window: int, **options: Any):
        super().__init__(num_heads, in_features, **options)
        self.window = window

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "#B #N #T #T"] | None = None,
        **call: Any,
    ) -> Float[Array, "B T _"]:
        """Attends within the window; the arguments are those of `Attention`."""
        length = x.shape[1]
        if "pair_mask" in self.mechanism.takes and length > self.window + 1:
            place = jnp.arange(length)
            near = (jnp.abs(place[:, None] - place) <= self.window)[None, None]
            mask = near if mask is None else mask & near
        return super().__call__(x, mask=mask, **call)
