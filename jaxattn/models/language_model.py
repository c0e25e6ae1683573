"""A decoder-only language model with any attention and any position encoding."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import parameter
from jaxattn.models._positions import POSITIONS, make_positions
from jaxattn.nn.spelling import parse_mechanism
from jaxattn.nn.transformer import Decoder
from jaxattn.tree import Tree

__all__ = ["POSITIONS", "LanguageModel"]


class LanguageModel(nnx.Module):
    """Embedding, positions, pre-norm causal blocks, and logits by the transposed embedding.

    Args:
        vocab_size: number of tokens V.
        num_layers: number of blocks.
        num_heads: query heads.
        features: width D.
        max_length: the longest sequence, in tokens (the context).
        mechanism: an attention mechanism or its spelling, such as "softmax+gate=running".
        positions: "none", "learned", "sinusoidal", "rotary", "morlet" (all windows at the origin, as
            published) or "morlet:learned" (learned centres).
        mlp_ratio: hidden width of the MLPs over D.
        dropout: probability, on the embedding and on every branch.
        num_kv_heads: key/value heads; None for num_heads.
        qk_norm: normalise queries and keys, with a gain that starts at this; see `jaxattn.nn.Attention`.
        allow_leak: lets the spelling "+gate=sequence" through, which reads later tokens.
        dtype: dtype of the computation; parameters are kept in `param_dtype`.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Raises:
        ValueError: an unknown mechanism or position encoding, or sizes that do not divide.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import LanguageModel
        >>> model = LanguageModel(
        ...     65, num_layers=2, num_heads=2, features=16, max_length=32, mechanism="softmax+gate", rngs=nnx.Rngs(0)
        ... )
        >>> model(jnp.zeros((1, 10), int)).shape
        (1, 10, 65)
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        num_layers: int,
        num_heads: int,
        features: int,
        max_length: int,
        mechanism: Mechanism | str = "softmax",
        positions: str = "learned",
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_kv_heads: int | None = None,
        qk_norm: float | None = None,
        allow_leak: bool = False,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if isinstance(mechanism, str):
            mechanism = parse_mechanism(mechanism, allow_leak=allow_leak)
        self.max_length = max_length
        self.dtype = dtype
        init = nnx.initializers.normal(0.02)
        # The residual stream sums 2 branches a block: smaller last projections keep its variance at the start.
        out_init = nnx.initializers.normal(0.02 / (2 * num_layers) ** 0.5)
        self.embedding = parameter(
            init, rngs.params(), (vocab_size, features), ("vocab", "embed"), param_dtype
        )
        added, rotary_base = make_positions(positions, max_length, features, param_dtype, rngs)
        self.positions = nnx.data(added)
        self.dropout = nnx.Dropout(dropout)
        self.decoder = Decoder(
            num_layers,
            features,
            num_heads,
            mechanism=mechanism,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            num_kv_heads=num_kv_heads,
            qk_norm=qk_norm,
            rotary_base=rotary_base,
            kernel_init=init,
            out_init=out_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        token_mask: Bool[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "*#B T"] | None = None,
        tree: Tree | None = None,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the next token after each position.

        Args:
            tokens: token ids.
            token_mask: True at real tokens, False at padding.
            segment_ids: tokens meet only within their segment (packing); give `positions` that restart too.
            positions: positions in tokens; None for 0 to T − 1.
            tree: over the tokens, or a batch of trees, for a mechanism that takes one at the call.
            deterministic: no dropout.
            rngs: holds the stream "dropout" unless `deterministic`.

        Returns:
            Logits in float32.

        Raises:
            ValueError: more tokens than `max_length`.
        """
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f"tokens must have at most max_length = {self.max_length} columns; got {tokens.shape[1]}."
            )
        x = self._embed(tokens, positions)
        x = self.dropout(x, deterministic=deterministic, rngs=rngs)
        x = self.decoder(
            x,
            token_mask=token_mask,
            segment_ids=segment_ids,
            positions=positions,
            tree=tree,
            deterministic=deterministic,
            rngs=rngs,
        )
        return self._logits(x)

    def init_state(self, batch: int, max_length: int | None = None) -> dict[str, Any]:
        """The decoding state for `batch` sequences of at most `max_length` tokens (None for the context)."""
        length = self.max_length if max_length is None else max_length
        if not 0 < length <= self.max_length:
            raise ValueError(f"max_length must be between 1 and {self.max_length}; got {length}.")
        return {
            "decoder": self.decoder.init_state(batch, length, self.dtype),
            "position": jnp.zeros((), jnp.int32),
        }

    def step(
        self, state: dict[str, Any], tokens: Int[Array, "B T"]
    ) -> tuple[dict[str, Any], Float[Array, "B T V"]]:
        """Logits after each of T new tokens, the same as in the whole pass; beyond the state's length, NaN.

        Args:
            state: from `init_state` or an earlier step.
            tokens: the new tokens; a whole prompt at once is one call.

        Returns:
            The new state and the logits in float32.
        """
        positions = state["position"] + jnp.arange(tokens.shape[1])
        decoder, x = self.decoder.step(state["decoder"], self._embed(tokens, positions))
        return {"decoder": decoder, "position": state["position"] + tokens.shape[1]}, self._logits(x)

    def _embed(self, tokens: Array, positions: Array | None) -> Array:
        x = self.embedding[...].astype(self.dtype)[tokens]
        return x if self.positions is None else self.positions(x, positions)

    def _logits(self, x: Array) -> Array:
        table = self.embedding[...].astype(self.dtype)
        return jnp.einsum("BTD,VD->BTV", x, table, preferred_element_type=jnp.float32)
