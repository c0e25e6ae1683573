"""Heads: logits from the hidden states of an encoder. The base class, and the usual linear head."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.core.arrays import ArrayLike, TokenMask
from jaxattn.core.checks import check_rank, check_shape
from jaxattn.nn.layers import check_sizes, linear
from jaxattn.nn.pooling import Pooling


class Head(nnx.Module):
    """Maps hidden states (B, L, d) and a padding mask to logits (B, classes); `features` is d.

    A sequence has the same logits however far it is padded.
    """

    features: int
    dtype: Any

    def __call__(
        self,
        hidden: Float[Array, "B L d"],
        attention_mask: TokenMask = None,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits of the classes.

        Args:
            hidden: the last hidden states of the encoder.
            attention_mask: True or 1 at real tokens; None if all are real.
            deterministic: no dropout; batch normalisation uses its running statistics and leaves them as they are.
                None for the module's own setting (`train()` and `eval()` change it), which is True at first.
            rngs: holds the stream "dropout" where there is dropout.

        Returns:
            Logits in float32.

        Raises:
            ValueError: hidden states of another width, or a mask of another shape.
        """
        token_mask = self._token_mask(hidden, attention_mask)
        hidden = hidden if self.dtype is None else hidden.astype(self.dtype)
        return self._logits(hidden, token_mask, deterministic=deterministic, rngs=rngs)

    @abc.abstractmethod
    def _logits(self, hidden: Array, token_mask: Array, **drop: Any) -> Array:
        """The logits; `drop` has the arguments of `nnx.Dropout`: deterministic and rngs."""

    def relevance(
        self,
        hidden: Float[Array, "B L d"],
        attention_mask: TokenMask = None,
        *,
        classes: Int[ArrayLike, " B"] | None = None,
    ) -> Float[Array, "B L"]:
        """Gradient times input: the share of each token's hidden state in a logit z_c.

        |h_i · ∂z_c/∂h_i| divided by its sum over the tokens. It needs no attention weights, so it means the same in
        every configuration. With the pooling "cls" and no attention, all of it is on the first token.

        Args:
            hidden: the last hidden states of the encoder.
            attention_mask: True or 1 at real tokens; None if all are real.
            classes: c of each row; None for the class with the largest logit.

        Returns:
            Shares in float32 that sum to 1 over the real tokens (or are all 0, if no token has an effect).
        """
        token_mask = self._token_mask(hidden, attention_mask)
        # 0 times a NaN in padding would be NaN.
        hidden = jnp.where(token_mask[..., None], hidden, 0)

        def chosen_logits(hidden: Array) -> Array:
            logits = self(hidden, token_mask, deterministic=True)
            chosen = logits.argmax(axis=-1) if classes is None else jnp.asarray(classes)
            return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum()

        gradient = jax.grad(chosen_logits)(hidden)
        share = abs((gradient.astype(jnp.float32) * hidden.astype(jnp.float32)).sum(axis=-1))
        share = jnp.where(token_mask, share, 0)
        total = share.sum(axis=-1, keepdims=True)
        return jnp.where(total > 0, share / jnp.where(total > 0, total, 1), 0)

    def _token_mask(self, hidden: Array, attention_mask: TokenMask) -> Array:
        check_rank("hidden", hidden, (3,), "(B, L, d)")
        check_shape("hidden", hidden, (*hidden.shape[:2], self.features), "(B, L, features)")
        if attention_mask is None:
            return jnp.ones(hidden.shape[:2], bool)
        check_shape("attention_mask", attention_mask, hidden.shape[:2], "(B, L)")
        return jnp.asarray(attention_mask).astype(bool)


class PoolingHead(Head):
    """The usual baseline: one vector a sequence, dropout, linear.

    Args:
        features: width d of the hidden states.
        num_classes: number of logits.
        pooling: "cls", "mean", "max" or "attention"; see `Pooling`.
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
        >>> head, hidden = PoolingHead(16, 3, rngs=nnx.Rngs(0)), jnp.ones((2, 5, 16))
        >>> head(hidden).shape
        (2, 3)
        >>> head.relevance(hidden)[0].tolist()  # "cls" reads the first token only
        [1.0, 0.0, 0.0, 0.0, 0.0]
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
        check_sizes(dropout=dropout, features=features, num_classes=num_classes)
        self.features, self.dtype = features, dtype
        self.pooling = Pooling(pooling, features, param_dtype=param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, deterministic=True)
        self.out = linear(
            features, num_classes, ("embed", "classes"), dtype=jnp.float32, param_dtype=param_dtype, rngs=rngs
        )

    def _logits(self, hidden: Array, token_mask: Array, **drop: Any) -> Array:
        return self.out(self.dropout(self.pooling(hidden, token_mask), **drop))
