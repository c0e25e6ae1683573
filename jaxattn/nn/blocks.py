"""Transformer blocks: attention, to a context too if asked, and an MLP, each a residual branch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import Initializer
from jaxattn.nn.attention import Attention, refuse
from jaxattn.nn.context import ProjectedContext
from jaxattn.nn.layers import DEFAULT_INIT, check_sizes, layer_norm, linear
from jaxattn.nn.sharding import constrain
from jaxattn.positions import Rotary
from jaxattn.tree import Tree


class MLP(nnx.Module):
    """down(f(up(x))), or down(f(up(x)) · gate(x)) where `gated`.

    Args:
        features: width D of the input and the output.
        hidden: width between the layers.
        activation: f.
        gated: multiply the activations by a second linear function of x.
        use_bias: whether the layers have offsets.
        out_bias: whether the last one has; None for `use_bias`.
        kernel_init: initial values of all kernels but the last.
        out_init: initial values of the last kernel.
        dtype: dtype of the computation; None follows the inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import MLP
        >>> mlp = MLP(8, 32, gated=True, rngs=nnx.Rngs(0))
        >>> mlp.up.kernel.shape, mlp.gate.kernel.shape, mlp.down.kernel.shape
        ((8, 32), (8, 32), (32, 8))
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.gelu,
        gated: bool = False,
        use_bias: bool = True,
        out_bias: bool | None = None,
        kernel_init: Initializer = DEFAULT_INIT,
        out_init: Initializer = DEFAULT_INIT,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widen = {"axes": ("embed", "mlp"), "kernel_init": kernel_init, "use_bias": use_bias, **options}
        out_bias = use_bias if out_bias is None else out_bias
        self.activation = activation
        self.up = linear(features, hidden, **widen)
        self.gate = nnx.data(linear(features, hidden, **widen) if gated else None)
        self.down = linear(
            hidden, features, ("mlp", "embed"), kernel_init=out_init, use_bias=out_bias, **options
        )

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Applies the layers to the last axis."""
        hidden = self.activation(self.up(x))
        if x.ndim == 3:
            hidden = constrain(hidden, "batch", "sequence", "mlp")
        return self.down(hidden if self.gate is None else hidden * self.gate(x))


class Block(nnx.Module):
    """Attention and an MLP, each a residual branch with dropout and a normalisation.

    Pre-norm: x + attention(norm(x)), then x + MLP(norm(x)). Post-norm: norm(x + attention(x)), then
    norm(x + MLP(x)). In the decoder of an encoder-decoder a branch of cross-attention lies between the two.

    Args:
        attention: the first branch.
        mlp: the second branch.
        attention_norm: the normalisation of the first branch; None for none.
        mlp_norm: the normalisation of the second branch.
        pre_norm: normalise the input of each branch; False normalises the sum after it.
        dropout: probability of dropping an element of a branch's output.
        cross_attention: the branch that attends to a context; None for none.
        cross_norm: its normalisation, as `attention_norm`.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: MLP,
        *,
        attention_norm: nnx.LayerNorm | None,
        mlp_norm: nnx.LayerNorm,
        pre_norm: bool = True,
        dropout: float = 0.0,
        cross_attention: Attention | None = None,
        cross_norm: nnx.LayerNorm | None = None,
    ):
        check_sizes(dropout=dropout)
        self.attention_norm = nnx.data(attention_norm)
        self.attention = attention
        self.cross_attention, self.cross_norm = nnx.data(cross_attention), nnx.data(cross_norm)
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.pre_norm = pre_norm
        self.dropout = nnx.Dropout(dropout, deterministic=True)

    @property
    def rotates(self) -> bool:
        """Whether an attention of it has a rotary position embedding, which reads `positions`."""
        attentions = (self.attention, self.cross_attention)
        return any(attention is not None and attention.rotary is not None for attention in attentions)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        context: Float[Array, "B S D"] | ProjectedContext | None = None,
        context_mask: Bool[Array, "B S"] | None = None,
        context_positions: Int[Array, "*#B S"] | None = None,
        token_mask: Bool[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "*#B T"] | None = None,
        is_causal: bool = False,
        tree: Tree | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        **special: Any,
    ) -> Float[Array, "B T D"]:
        """Applies the block.

        Args:
            x: the input.
            context: what cross-attention attends to, in a block that has it; see `Attention`.
            context_mask: True at the context's real tokens.
            context_positions: positions of the context for rotary embedding; None for 0 to S − 1.
            token_mask: True at real tokens, False at padding; None if all are real.
            segment_ids: tokens attend within their segment only (packing); not beside a context.
            positions: positions for rotary embedding; None for 0 to T − 1.
            is_causal: a token attends to itself and earlier tokens only.
            tree: over the T tokens, or a batch of trees, for a mechanism that attends over one.
            deterministic: no dropout; None for the module's own setting (`train()` and `eval()` change it), which
                is no dropout at first.
            rngs: holds the stream "dropout" where there is dropout.
            **special: arguments of an attention of another class than `Attention`.

        Raises:
            ValueError: a context without cross-attention, or cross-attention without a context; segment_ids with one;
                positions where nothing rotates by them.
        """
        self._check_context(context, context_mask, context_positions)
        if not self.rotates:
            refuse("a block with a rotary position embedding", {"positions": positions})
        if context is not None:
            # Cross-attention would let every packed sequence see the contexts of the others.
            refuse("a block without cross-attention", {"segment_ids": segment_ids})

        def attend(x: Array) -> Array:
            return self.attention(
                x,
                token_mask=token_mask,
                segment_ids=segment_ids,
                positions=None if self.attention.rotary is None else positions,
                is_causal=is_causal,
                tree=tree,
                **special,
            )

        def branch(x: Array, norm: nnx.LayerNorm | None, f: Callable[[Array], Array]) -> Array:
            new = f(_normalised(norm, x) if self.pre_norm else x)
            total = x + self.dropout(new, deterministic=deterministic, rngs=rngs)
            return total if self.pre_norm else _normalised(norm, total)

        x = branch(constrain(x, "batch", "sequence", None), self.attention_norm, attend)
        if (cross := self.cross_attention) is not None:

            def look(x: Array) -> Array:
                return cross(
                    x,
                    context=context,
                    context_mask=context_mask,
                    context_positions=context_positions,
                    token_mask=token_mask,
                    positions=None if cross.rotary is None else positions,
                )

            x = branch(x, self.cross_norm, look)
        return branch(x, self.mlp_norm, self.mlp)

    def init_state(
        self,
        batch: int,
        max_length: int,
        dtype: Any = jnp.float32,
        *,
        context: Float[Array, "B S D"] | ProjectedContext | None = None,
        context_mask: Bool[Array, "B S"] | None = None,
        context_positions: Int[Array, "*#B S"] | None = None,
    ) -> dict[str, Any]:
        """The decoding state of the attention; with cross-attention also the context, projected once.

        Raises:
            ValueError: a context without cross-attention, or cross-attention without a context; a mechanism there
                that reads earlier queries, which no step remembers.
        """
        self._check_context(context, context_mask, context_positions)
        state = self.attention.init_state(batch, max_length, dtype)
        if self.cross_attention is None or context is None:
            return state
        mechanism = self.cross_attention.mechanism
        if mechanism.reads_earlier_queries:
            raise ValueError(
                f"context cannot be decoded with {type(mechanism).__name__}, which reads queries before the new ones."
            )
        projected = self.cross_attention.project_context(
            context, context_mask=context_mask, context_positions=context_positions
        )
        return {"attention": state, "context": projected}

    def step(
        self,
        state: dict[str, Any],
        x: Float[Array, "B T D"],
        *,
        token_mask: Bool[Array, "B T"] | None = None,
    ) -> tuple[dict[str, Any], Float[Array, "B T D"]]:
        """Applies a pre-norm block to T new tokens; see `Attention.step`."""
        own = state if self.cross_attention is None else state["attention"]
        new, attended = self.attention.step(own, _normalised(self.attention_norm, x), token_mask=token_mask)
        x = x + attended
        if (cross := self.cross_attention) is not None:
            positions = own["position"][:, None] + jnp.arange(x.shape[1])
            x = x + cross(
                _normalised(self.cross_norm, x),
                context=state["context"],
                token_mask=token_mask,
                positions=None if cross.rotary is None else positions,
            )
            new = {"attention": new, "context": state["context"]}
        return new, x + self.mlp(self.mlp_norm(x))

    def _check_context(self, context: Any, context_mask: Any, context_positions: Any) -> None:
        if (context is None) != (self.cross_attention is None):
            has = "no cross-attention" if self.cross_attention is None else "cross-attention"
            got = None if context is None else type(context).__name__
            raise ValueError(
                f"context must be given where a block has cross-attention: it has {has}; got {got}."
            )
        if context is None:
            refuse("context", {"context_mask": context_mask, "context_positions": context_positions})


def _normalised(norm: nnx.LayerNorm | None, x: Array) -> Array:
    return x if norm is None else norm(x)


class TransformerBlock(Block):
    """A pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)).

    Args:
        features: width D.
        num_heads: query heads.
        mechanism: the attention inside; None for softmax.
        cross_mechanism: a second attention, between the two, to the `context` of every call; None for none.
        mlp_ratio: hidden width of the MLP over D.
        dropout: probability of dropping an element of a branch's output.
        num_kv_heads: key/value heads, a divisor of num_heads; None for num_heads.
        qk_norm: normalise queries and keys, with a gain that starts at this; see `Attention`.
        projection_norm: LayerNorm of every query, key and value; see `Attention`.
        query_residual: add each head's query to its output; see `Attention`.
        rotary: rotary position embedding, or its base; see `Attention`.
        kernel_init: initial values of all projections but the last of each branch.
        out_init: initial values of the last projection of each branch.
        dtype: dtype of the computation; None follows the inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import TransformerBlock
        >>> block, x = TransformerBlock(8, 2, rngs=nnx.Rngs(0)), jnp.arange(40.0).reshape(1, 5, 8)
        >>> causal = block(x, is_causal=True)
        >>> bool(jnp.allclose(causal[:, :3], block(x[:, :3], is_causal=True), atol=1e-5))
        True
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        mechanism: Mechanism | None = None,
        cross_mechanism: Mechanism | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_kv_heads: int | None = None,
        qk_norm: float | None = None,
        projection_norm: bool = False,
        query_residual: bool = False,
        rotary: Rotary | float | None = None,
        kernel_init: Initializer = DEFAULT_INIT,
        out_init: Initializer = DEFAULT_INIT,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if mlp_ratio * features < 1:
            raise ValueError(f"mlp_ratio must give the MLP a width of at least 1; got {mlp_ratio}.")
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        inits: dict[str, Any] = {"kernel_init": kernel_init, "out_init": out_init}

        def attention(mechanism: Mechanism | None) -> Attention:
            return Attention(
                num_heads,
                features,
                mechanism=mechanism,
                num_kv_heads=num_kv_heads,
                qk_norm=qk_norm,
                projection_norm=projection_norm,
                query_residual=query_residual,
                rotary=rotary,
                **inits,
                **options,
            )

        # In this order: it decides which random numbers each parameter gets.
        super().__init__(
            attention_norm=layer_norm(features, **options),
            attention=attention(mechanism),
            mlp_norm=layer_norm(features, **options),
            mlp=MLP(features, int(mlp_ratio * features), **inits, **options),
            dropout=dropout,
            cross_norm=None if cross_mechanism is None else layer_norm(features, **options),
            cross_attention=None if cross_mechanism is None else attention(cross_mechanism),
        )
