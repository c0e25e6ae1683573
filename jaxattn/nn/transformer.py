"""Pre-norm transformer blocks and stacks of them."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import Initializer
from jaxattn.nn.attention import DEFAULT_INIT, Attention
from jaxattn.tree import Tree


def layer_norm(features: int, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation whose parameters carry axis names."""
    return nnx.LayerNorm(
        features,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_metadata={"axes": ("embed",)},
        bias_metadata={"axes": ("embed",)},
        rngs=rngs,
    )


class MLP(nnx.Module):
    """Linear, GELU, linear."""

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        kernel_init: Initializer = DEFAULT_INIT,
        out_init: Initializer = DEFAULT_INIT,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        def linear(width_in: int, width_out: int, axes: tuple[str, str], init: Initializer) -> nnx.Linear:
            return nnx.Linear(
                width_in,
                width_out,
                kernel_init=init,
                kernel_metadata={"axes": axes},
                bias_metadata={"axes": axes[1:]},
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.up = linear(features, hidden, ("embed", "mlp"), kernel_init)
        self.down = linear(hidden, features, ("mlp", "embed"), out_init)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Applies the two layers to the last axis."""
        return self.down(nnx.gelu(self.up(x)))


class TransformerBlock(nnx.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), with dropout on both branches.

    Args:
        features: width D.
        num_heads: query heads.
        mechanism: the attention inside; None for softmax.
        mlp_ratio: hidden width of the MLP over D.
        dropout: probability of dropping an element of a branch's output.
        num_kv_heads: see `Attention`.
        qk_norm: see `Attention`.
        projection_norm: see `Attention`.
        query_residual: see `Attention`.
        rotary_base: see `Attention`.
        kernel_init: initial values of all projections but the last of each branch.
        out_init: initial values of the last projection of each branch.
        dtype: dtype of the computation; None follows the inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import TransformerBlock
        >>> TransformerBlock(8, 2, rngs=nnx.Rngs(0))(jnp.ones((1, 5, 8))).shape
        (1, 5, 8)
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        mechanism: Mechanism | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_kv_heads: int | None = None,
        qk_norm: float | None = None,
        projection_norm: bool = False,
        query_residual: bool = False,
        rotary_base: float | None = None,
        kernel_init: Initializer = DEFAULT_INIT,
        out_init: Initializer = DEFAULT_INIT,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        inits: dict[str, Any] = {"kernel_init": kernel_init, "out_init": out_init}
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.attention_norm = layer_norm(features, dtype, param_dtype, rngs)
        self.attention = Attention(
            num_heads,
            features,
            mechanism=mechanism,
            num_kv_heads=num_kv_heads,
            qk_norm=qk_norm,
            projection_norm=projection_norm,
            query_residual=query_residual,
            rotary_base=rotary_base,
            **inits,
            **dtypes,
            rngs=rngs,
        )
        self.mlp_norm = layer_norm(features, dtype, param_dtype, rngs)
        self.mlp = MLP(features, int(mlp_ratio * features), **inits, **dtypes, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        token_mask: Bool[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "*#B T"] | None = None,
        is_causal: bool = False,
        tree: Tree | None = None,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T D"]:
        """Applies the block; `rngs` needs a "dropout" stream unless `deterministic`. See `Attention`."""
        drop: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        attended = self.attention(
            self.attention_norm(x),
            token_mask=token_mask,
            segment_ids=segment_ids,
            positions=positions,
            is_causal=is_causal,
            tree=tree,
        )
        x = x + self.dropout(attended, **drop)
        return x + self.dropout(self.mlp(self.mlp_norm(x)), **drop)

    def init_state(self, batch: int, max_length: int, dtype: Any = jnp.float32) -> dict[str, Any]:
        """The decoding state of the attention."""
        return self.attention.init_state(batch, max_length, dtype)

    def step(
        self, state: dict[str, Any], x: Float[Array, "B T D"]
    ) -> tuple[dict[str, Any], Float[Array, "B T D"]]:
        """Applies the block to T new tokens."""
        state, attended = self.attention.step(state, self.attention_norm(x))
        x = x + attended
        return state, x + self.mlp(self.mlp_norm(x))


class _Stack(nnx.Module):
    """Blocks one after another and a final normalisation."""

    is_causal: bool

    def __init__(
        self,
        num_layers: int,
        features: int,
        num_heads: int,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **block: Any,
    ):
        self.blocks = nnx.List(
            [
                TransformerBlock(
                    features, num_heads, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **block
                )
                for _ in range(num_layers)
            ]
        )
        self.norm = layer_norm(features, dtype, param_dtype, rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        token_mask: Bool[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "*#B T"] | None = None,
        tree: Tree | None = None,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T D"]:
        """Applies all blocks; the arguments are those of `TransformerBlock`.

        A tree is for those blocks that attend over one, of which there must be some.
        """
        if tree is not None and not any(block.attention.mechanism.uses_tree for block in self.blocks):
            raise ValueError(
                "tree is for mechanisms that attend over one, such as Hierarchical(); no block has one."
            )
        for block in self.blocks:
            x = block(
                x,
                token_mask=token_mask,
                segment_ids=segment_ids,
                positions=positions,
                is_causal=self.is_causal,
                tree=tree if block.attention.mechanism.uses_tree else None,
                deterministic=deterministic,
                rngs=rngs,
            )
        return self.norm(x)


class Encoder(_Stack):
    """A stack of bidirectional blocks and a final normalisation.

    Args:
        num_layers: number of blocks.
        features: width D.
        num_heads: query heads.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.
        **block: every other argument of `TransformerBlock`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Encoder
        >>> Encoder(2, 8, 2, rngs=nnx.Rngs(0))(jnp.ones((1, 5, 8)), token_mask=jnp.ones((1, 5), bool)).shape
        (1, 5, 8)
    """

    is_causal = False


class Decoder(_Stack):
    """A stack of causal blocks and a final normalisation; it also decodes token by token.

    Args:
        num_layers: number of blocks.
        features: width D.
        num_heads: query heads.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.
        **block: every other argument of `TransformerBlock`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Decoder
        >>> decoder = Decoder(2, 8, 2, rngs=nnx.Rngs(0))
        >>> state, y = decoder.step(decoder.init_state(1, 16), jnp.ones((1, 5, 8)))
        >>> bool(jnp.allclose(y, decoder(jnp.ones((1, 5, 8))), atol=1e-5))
        True
    """

    is_causal = True

    def init_state(self, batch: int, max_length: int, dtype: Any = jnp.float32) -> list[dict[str, Any]]:
        """The decoding states of all blocks, for sequences of at most `max_length` tokens."""
        return [block.init_state(batch, max_length, dtype) for block in self.blocks]

    def step(
        self, state: list[dict[str, Any]], x: Float[Array, "B T D"]
    ) -> tuple[list[dict[str, Any]], Float[Array, "B T D"]]:
        """Applies all blocks to T new tokens: the same result as the whole pass."""
        states = []
        for block, block_state in zip(self.blocks, state, strict=True):
            block_state, x = block.step(block_state, x)
            states.append(block_state)
        return states, self.norm(x)
