"""A decoder-only language model with any attention and any position encoding."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.arrays import ArrayLike, as_jax
from jaxattn.core.checks import check_rank, check_token_mask
from jaxattn.models.backbone import Backbone, BackboneConfig
from jaxattn.nn.decoder import Decoder
from jaxattn.tree import Tree


class LanguageModel(Backbone):
    """Embedding, positions, pre-norm causal blocks, and logits by the transposed embedding.

    Args:
        vocab_size: number of tokens V.
        config: sizes and options.
        rngs: random streams for the initial values.

    Raises:
        ValueError: sizes that do not divide.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import BackboneConfig, LanguageModel
        >>> config = BackboneConfig(
        ...     num_layers=2, num_heads=2, hidden_size=16, max_length=32, mechanism="softmax+gate=running"
        ... )
        >>> model, tokens = LanguageModel(65, config, rngs=nnx.Rngs(0)), jnp.arange(10)[None]
        >>> model(tokens).shape
        (1, 10, 65)
        >>> bool(jnp.allclose(model(tokens[:, :4]), model(tokens)[:, :4], atol=1e-5))  # causal
        True
    """

    def __init__(self, vocab_size: int, config: BackboneConfig, *, rngs: nnx.Rngs):
        super().__init__(vocab_size, config, rngs=rngs)
        self.decoder = self._stack(Decoder, config, rngs)

    def __call__(
        self,
        tokens: Int[ArrayLike, "B T"],
        *,
        token_mask: Bool[ArrayLike, "B T"] | None = None,
        segment_ids: Int[ArrayLike, "B T"] | None = None,
        positions: Int[ArrayLike, "*#B T"] | None = None,
        tree: Tree | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the next token after each position.

        Args:
            tokens: token ids.
            token_mask: True at real tokens, False at padding; None if all are real.
            segment_ids: tokens attend within their segment only (packing); give `positions` that restart too.
            positions: positions in tokens; None for 0 to T − 1.
            tree: over the tokens, or a batch of trees, for a mechanism that takes one at the call.
            deterministic: no dropout; None for the module's own setting (`train()` and `eval()` change it), which
                is no dropout at first.
            rngs: holds the stream "dropout" where there is dropout.

        Returns:
            Logits in float32.

        Raises:
            ValueError: more tokens than `max_length`; positions in a model that reads none.
        """
        drop: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        mask, segments, places = as_jax(token_mask, segment_ids, positions)
        x = self.dropout(self._embed(tokens, places), **drop)
        places = self._for_blocks(places)
        x = self.decoder(x, token_mask=mask, segment_ids=segments, positions=places, tree=tree, **drop)
        return self._logits(x)

    def init_state(self, batch: int, max_length: int | None = None) -> dict[str, Any]:
        """The decoding state for `batch` sequences of at most `max_length` tokens (None for the context)."""
        length = self.max_length if max_length is None else max_length
        if not 0 < length <= self.max_length:
            raise ValueError(f"max_length must be between 1 and {self.max_length}; got {length}.")
        return {
            "decoder": self.decoder.init_state(batch, length, self.dtype),
            "position": jnp.zeros((batch,), jnp.int32),
        }

    def step(
        self,
        state: dict[str, Any],
        tokens: Int[ArrayLike, "B T"],
        *,
        token_mask: Bool[ArrayLike, "B T"] | None = None,
    ) -> tuple[dict[str, Any], Float[Array, "B T V"]]:
        """Logits after each of T new tokens, the same as in the whole pass; beyond the state's length, NaN.

        The sequences of a batch may have any lengths, and each as many new tokens as it likes, none included. With
        `jaxattn.replace_rows` a sequence that has ended gives way to a new one.

        Args:
            state: from `init_state` or an earlier step.
            tokens: the new tokens; a whole prompt at once is one call.
            token_mask: True at real tokens, False at padding, which may be anywhere in a row: what is computed for a
                sequence is what it would be alone. None if all are real.

        Returns:
            The new state and the logits in float32; what they are at padding has no meaning.
        """
        if token_mask is None:
            state, x = self._hidden_step(state, tokens, None)
            return state, self._logits(x)
        order, tokens, token_mask = _real_first(tokens, token_mask)
        state, x = self._hidden_step(state, tokens, token_mask)
        back = jnp.argsort(order, axis=1)
        return state, self._logits(jnp.take_along_axis(x, back[..., None], axis=1))

    def prefill(
        self,
        tokens: Int[ArrayLike, "B T"],
        *,
        token_mask: Bool[ArrayLike, "B T"] | None = None,
        max_length: int | None = None,
    ) -> tuple[dict[str, Any], Float[Array, "B V"]]:
        """The decoding state after whole prompts, and the logits of the token that follows.

        That is `init_state` and a `step`, without the logits inside the prompts.

        Args:
            tokens: the prompts.
            token_mask: True at real tokens, at least one a row; see `step`.
            max_length: the most tokens of a sequence, prompt included; None for the context.

        Returns:
            The state and the logits in float32.
        """
        check_rank("tokens", tokens, (2,), "(B, T)")
        if token_mask is not None:
            _, tokens, token_mask = _real_first(tokens, token_mask)
        state, x = self._hidden_step(self.init_state(tokens.shape[0], max_length), tokens, token_mask)
        if token_mask is None:
            return state, self._logits(x[:, -1:])[:, 0]
        last = jnp.maximum(token_mask.sum(axis=1) - 1, 0)
        return state, self._logits(jnp.take_along_axis(x, last[:, None, None], axis=1))[:, 0]

    def _hidden_step(
        self, state: dict[str, Any], tokens: Int[ArrayLike, "B T"], token_mask: Bool[ArrayLike, "B T"] | None
    ) -> tuple[dict[str, Any], Float[Array, "B T D"]]:
        """`step` up to the last hidden states, for real tokens that come first in every row."""
        check_rank("tokens", tokens, (2,), "(B, T)")
        if tokens.shape[0] != state["position"].shape[0]:
            raise ValueError(
                f"tokens must have a row for each of the state's {state['position'].shape[0]} sequences; "
                f"got shape {tokens.shape}."
            )
        index, count = jnp.arange(tokens.shape[1])[None], jnp.int32(tokens.shape[1])
        if token_mask is not None:
            count = token_mask.sum(axis=1, dtype=jnp.int32)
            # Padding gets the position of the last real token, not one that may lie beyond the context.
            index = jnp.minimum(index, jnp.maximum(count - 1, 0)[:, None])
        x = self._embed(tokens, state["position"][:, None] + index)
        decoder, x = self.decoder.step(state["decoder"], x, token_mask=token_mask)
        return {"decoder": decoder, "position": state["position"] + count}, x

    def _logits(self, x: Array) -> Array:
        table = self.embedding[...].astype(self.dtype)
        return jnp.einsum("BTD,VD->BTV", x, table, preferred_element_type=jnp.float32)


def _real_first(tokens: ArrayLike, token_mask: ArrayLike) -> tuple[Array, Array, Array]:
    """(order, tokens, token_mask) with the real tokens of every row first, in their order: all layers rely on it."""
    check_token_mask(token_mask, tokens.shape)
    tokens, token_mask = as_jax(tokens, token_mask)
    order = jnp.argsort(~token_mask, axis=1, stable=True)
    return order, jnp.take_along_axis(tokens, order, axis=1), jnp.take_along_axis(token_mask, order, axis=1)
