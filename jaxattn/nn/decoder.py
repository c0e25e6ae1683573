"""A causal stack of blocks that also decodes token by token."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn.nn.stack import Stack, check_not_projected


class Decoder(Stack):
    """A stack of causal blocks and a final normalisation.

    `step` reads any number of new tokens a call; the results are those of the whole pass.

    Args:
        num_layers: number of blocks.
        features: width D.
        num_heads: query heads.

    The other keywords are those of `Encoder`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Decoder
        >>> decoder = Decoder(2, 8, 2, rngs=nnx.Rngs(0))
        >>> state, y = decoder.step(decoder.init_state(1, 16), jnp.ones((1, 5, 8)))
        >>> bool(jnp.allclose(y, decoder(jnp.ones((1, 5, 8))), atol=1e-5))
        True

        The decoder of an encoder-decoder, which reads a source of 7 tokens:

        >>> from jaxattn.nn import Softmax
        >>> decoder, source = Decoder(2, 8, 2, cross_mechanism=Softmax(), rngs=nnx.Rngs(0)), jnp.ones((1, 7, 8))
        >>> state, y = decoder.step(decoder.init_state(1, 16, context=source), jnp.ones((1, 5, 8)))
        >>> bool(jnp.allclose(y, decoder(jnp.ones((1, 5, 8)), context=source), atol=1e-5))
        True
    """

    is_causal = True

    def init_state(
        self,
        batch: int,
        max_length: int,
        dtype: Any = jnp.float32,
        *,
        context: Float[Array, "B S D"] | None = None,
        context_mask: Bool[Array, "B S"] | None = None,
        context_positions: Int[Array, "*#B S"] | None = None,
    ) -> list[dict[str, Any]]:
        """The decoding states of all blocks, for sequences of at most `max_length` tokens.

        Args:
            batch: sequences decoded together.
            max_length: the most tokens of a sequence.
            dtype: of cached keys and values.
            context: what cross-attention attends to, in a decoder that has it: projected here, once.
            context_mask: True at the context's real tokens.
            context_positions: positions of the context for rotary embedding; None for 0 to S − 1.
        """
        check_not_projected(context)
        of_context = {"context_mask": context_mask, "context_positions": context_positions}
        return [
            block.init_state(batch, max_length, dtype, context=context, **of_context) for block in self.blocks
        ]

    def step(
        self,
        state: list[dict[str, Any]],
        x: Float[Array, "B T D"],
        *,
        token_mask: Bool[Array, "B T"] | None = None,
    ) -> tuple[list[dict[str, Any]], Float[Array, "B T D"]]:
        """Applies all blocks to T new tokens: the same result as the whole pass; see `Attention.step`."""
        states = []
        for block, block_state in zip(self.blocks, state, strict=True):
            block_state, x = block.step(block_state, x, token_mask=token_mask)
            states.append(block_state)
        return states, self.norm(x)
