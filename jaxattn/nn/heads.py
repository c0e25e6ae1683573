"""Heads: what turns an encoder's hidden states into logits; their common base, and the plain one."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import check_choice, check_rank, check_shape

TokenMask = Bool[Array, "B L"] | Int[Array, "B L"] | None


class Head(nnx.Module):
    """Maps hidden states (B, L, d) and a padding mask to logits (B, classes); `features` is d."""

    features: int

    @abc.abstractmethod
    def __call__(
        self,
        hidden: Float[Array, "B L d"],
        attention_mask: TokenMask = None,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits in float32."""

    def relevance(
        self,
        hidden: Float[Array, "B L d"],
        attention_mask: TokenMask = None,
        *,
        classes: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B L"]:
        """How much each token's hidden state counts for a logit z_c: |h_i · ∂z_c/∂h_i|, divided by their sum.

        Gradient times input; it needs no attention weights, so that it means the same for every configuration. With
        the pooling "cls" and no attention, all of it is on the one token that is read.

        Args:
            hidden: the encoder's hidden states.
            attention_mask: True or 1 at real tokens; None if all are real.
            classes: c of each row; None for the class with the largest logit.

        Returns:
            Numbers in float32 that sum to 1 over the real tokens (or are all 0, where no token counts).
        """
        mask = self._token_mask(hidden, attention_mask)
        # A NaN in padding must not meet its gradient of 0 below.
        hidden = jnp.where(mask[..., None], hidden, 0)

        def chosen_logits(hidden: Array) -> Array:
            logits = self(hidden, mask)
            chosen = logits.argmax(axis=-1) if classes is None else classes
            return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum()

        gradient = jax.grad(chosen_logits)(hidden)
        share = abs((gradient.astype(jnp.float32) * hidden.astype(jnp.float32)).sum(axis=-1))
        share = jnp.where(mask, share, 0)
        total = share.sum(axis=-1, keepdims=True)
        return jnp.where(total > 0, share / jnp.where(total > 0, total, 1), 0)

    def _token_mask(self, hidden: Array, attention_mask: Array | None) -> Array:
        check_rank("hidden", hidden, (3,), "(B, L, d)")
        check_shape("hidden", hidden, (*hidden.shape[:2], self.features), "(B, L, features)")
        if attention_mask is None:
            return jnp.ones(hidden.shape[:2], bool)
        check_shape("attention_mask", attention_mask, hidden.shape[:2], "(B, L)")
        return attention_mask.astype(bool)


class PoolingHead(Head):
    """The usual baseline: one vector a sequence (of [CLS], or the mean), dropout, linear.

    Args:
        features: width d of the hidden states.
        num_classes: number of logits.
        pooling: "cls" takes the first real token, "mean" the mean of the real tokens.
        dropout: probability, on the pooled vector.
        dtype: dtype of the pooled vector; the logits are computed in float32. None follows the input.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Raises:
        ValueError: an unknown pooling, or a dropout outside [0, 1).

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import PoolingHead
        >>> PoolingHead(16, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 16))).shape
        (2, 3)
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        pooling: str = "cls",
        dropout: float = 0.3,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("pooling", pooling, ("cls", "mean"))
        check_sizes(dropout=dropout, features=features, num_classes=num_classes)
        self.features, self.pooling, self.dtype = features, pooling, dtype
        self.dropout = nnx.Dropout(dropout)
        self.out = linear(features, num_classes, ("embed", "classes"), param_dtype, rngs)

    def __call__(
        self,
        hidden: Float[Array, "B L d"],
        attention_mask: TokenMask = None,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits of the classes.

        Args:
            hidden: the encoder's last hidden states.
            attention_mask: True or 1 at real tokens; None if all are real.
            deterministic: no dropout.
            rngs: holds the stream "dropout" unless `deterministic`.

        Returns:
            Logits in float32.

        Raises:
            ValueError: hidden states of another width, or a mask of another shape.
        """
        mask = self._token_mask(hidden, attention_mask)
        hidden = hidden if self.dtype is None else hidden.astype(self.dtype)
        pooled = pool(hidden, mask, self.pooling)
        return self.out(self.dropout(pooled, deterministic=deterministic, rngs=rngs))


def pool(x: Float[Array, "B L D"], mask: Bool[Array, "B L"], pooling: str) -> Float[Array, "B D"]:
    """The first real token ("cls") or the mean of the real ones; 0 where there is none."""
    # Selected, not multiplied: what stands in padding may be anything, also NaN.
    if pooling == "mean":
        total = jnp.where(mask[..., None], x.astype(jnp.float32), 0).sum(axis=1)
        return (total / jnp.maximum(mask.sum(axis=1), 1)[:, None]).astype(x.dtype)
    first = jnp.take_along_axis(x, mask.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    return jnp.where(mask.any(axis=1)[:, None], first, 0)


def linear(
    width_in: int, width_out: int, axes: tuple[str, str], param_dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    """A layer between a sequence's vector and the logits, computed in float32."""
    return nnx.Linear(
        width_in,
        width_out,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
        dtype=jnp.float32,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def check_sizes(*, dropout: float, **sizes: int) -> None:
    """Raises unless the sizes are positive and the dropout is a probability below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1); got {dropout}.")
