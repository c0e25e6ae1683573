"""Stacks of pre-norm blocks with a final normalisation, and the bidirectional one."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import Initializer
from jaxattn.nn.blocks import TransformerBlock
from jaxattn.nn.context import ProjectedContext
from jaxattn.nn.layers import DEFAULT_INIT, layer_norm
from jaxattn.positions import Rotary
from jaxattn.tree import Tree


class Stack(nnx.Module):
    """Blocks one after another and a final normalisation; subclasses say whether they are causal.

    Args:
        num_layers: number of blocks.
        features: width D.
        num_heads: query heads.

    The keywords are those of `TransformerBlock`.
    """

    is_causal: bool

    def __init__(
        self,
        num_layers: int,
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
        def block() -> TransformerBlock:
            return TransformerBlock(
                features,
                num_heads,
                mechanism=mechanism,
                cross_mechanism=cross_mechanism,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                num_kv_heads=num_kv_heads,
                qk_norm=qk_norm,
                projection_norm=projection_norm,
                query_residual=query_residual,
                rotary=rotary,
                kernel_init=kernel_init,
                out_init=out_init,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.blocks = nnx.List([block() for _ in range(num_layers)])
        self.norm = layer_norm(features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        context: Float[Array, "B S D"] | None = None,
        context_mask: Bool[Array, "B S"] | None = None,
        context_positions: Int[Array, "*#B S"] | None = None,
        token_mask: Bool[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "*#B T"] | None = None,
        tree: Tree | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T D"]:
        """Applies all blocks; the arguments are those of `TransformerBlock`.

        Raises:
            ValueError: a tree, where no block attends over one; blocks that do not are called without it. A context
                that one attention has projected.
        """
        check_tree(tree, self.blocks)
        check_not_projected(context)
        for block in self.blocks:
            x = block(
                x,
                context=context,
                context_mask=context_mask,
                context_positions=context_positions,
                token_mask=token_mask,
                segment_ids=segment_ids,
                positions=positions,
                is_causal=self.is_causal,
                tree=tree if "tree" in block.attention.mechanism.takes else None,
                deterministic=deterministic,
                rngs=rngs,
            )
        return self.norm(x)


class Encoder(Stack):
    """A stack of bidirectional blocks and a final normalisation.

    Args:
        num_layers: number of blocks.
        features: width D.
        num_heads: query heads.

    The keywords are those of `TransformerBlock`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Encoder
        >>> encoder, x = Encoder(2, 8, 2, rngs=nnx.Rngs(0)), jnp.arange(40.0).reshape(1, 5, 8)
        >>> padded = encoder(x, token_mask=jnp.array([[True, True, True, False, False]]))
        >>> bool(jnp.allclose(padded[:, :3], encoder(x[:, :3]), atol=1e-5))
        True
    """

    is_causal = False


def check_not_projected(context: Any) -> None:
    """Raises for a `ProjectedContext`: in a stack every block has projections of its own."""
    if isinstance(context, ProjectedContext):
        raise ValueError(
            "context must be an array (B, S, D), which every block projects with its own weights; got "
            "ProjectedContext."
        )


def check_tree(tree: Tree | None, blocks: Iterable[Any]) -> None:
    """Raises where a tree is given and no block attends over one."""
    if tree is not None and not any("tree" in block.attention.mechanism.takes for block in blocks):
        raise ValueError(
            "tree is for mechanisms that attend over one, such as Hierarchical(); no block has one."
        )
