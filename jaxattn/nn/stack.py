"""Stacks of pre-norm blocks with a final normalisation; their blocks unrolled or scanned."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import check_choice
from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import Initializer
from jaxattn.nn.attention import refuse
from jaxattn.nn.blocks import Block, TransformerBlock
from jaxattn.nn.context import ProjectedContext
from jaxattn.nn.layers import DEFAULT_INIT, check_sizes, layer_norm
from jaxattn.nn.scanned import REMAT, ScannedBlocks, apply_blocks
from jaxattn.positions import Rotary
from jaxattn.tree import Tree

Model = TypeVar("Model", bound=nnx.Module)
SCANNED_FROM = 4  # layers; fewer compile as fast unrolled


class Stack(nnx.Module):
    """Blocks one after another and a final normalisation; subclasses say whether they are causal.

    Args:
        num_layers: number of blocks.
        features: width D.
        num_heads: query heads.

    The keywords are those of `Encoder`.

    Raises:
        ValueError: an unknown `remat` or `scan_layers`, or sizes that are not positive.
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
        scan_layers: bool | None = None,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        check_choice("remat", remat, REMAT)
        check_choice("scan_layers", scan_layers, (None, True, False))
        check_sizes(num_layers=num_layers)

        def block(rngs: nnx.Rngs) -> TransformerBlock:
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

        self.remat = remat
        self.blocks: nnx.List | ScannedBlocks
        if num_layers >= SCANNED_FROM if scan_layers is None else scan_layers:
            self.blocks = ScannedBlocks.create(num_layers, block, rngs)
        else:
            self.blocks = nnx.List([block(rngs) for _ in range(num_layers)])
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
            ValueError: a tree, where no block attends over one, or positions, where none rotates by them; blocks that
                do not are called without. A context that one attention has projected.
        """
        blocks = self.blocks
        parts = (blocks.stacked,) if isinstance(blocks, ScannedBlocks) else blocks
        check_tree(tree, parts)
        if not any(block.rotates for block in parts):
            refuse("blocks with a rotary position embedding", {"positions": positions})
        check_not_projected(context)

        def apply(block: Block, x: Array, rngs: nnx.Rngs | None) -> Array:
            return block(
                x,
                context=context,
                context_mask=context_mask,
                context_positions=context_positions,
                token_mask=token_mask,
                segment_ids=segment_ids,
                positions=positions if block.rotates else None,
                is_causal=self.is_causal,
                tree=tree if "tree" in block.attention.mechanism.takes else None,
                deterministic=deterministic,
                rngs=rngs,
            )

        return self.norm(apply_blocks(blocks, apply, x, remat=self.remat, rngs=rngs))


def scan_layers(model: Model) -> Model:
    """A copy of the model whose stacks of blocks of one structure are scanned.

    Args:
        model: any Flax NNX module with an `Encoder` or a `Decoder` inside.

    Returns:
        The copy.

    Raises:
        ValueError: a stack whose blocks have different structures; a model without a stack.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Encoder, scan_layers, unroll_layers
        >>> encoder, x = Encoder(3, 8, 2, rngs=nnx.Rngs(0)), jnp.arange(40.0).reshape(1, 5, 8)
        >>> bool(jnp.allclose(scan_layers(encoder)(x), encoder(x), atol=1e-5))
        True
        >>> bool(jnp.allclose(unroll_layers(scan_layers(encoder))(x), encoder(x), atol=1e-5))
        True
    """
    if not any(isinstance(module, Stack) for _, module in nnx.iter_modules(model)):
        raise ValueError(f"model must have an Encoder or a Decoder inside; got {type(model).__name__}.")
    return _convert(model, nnx.List, ScannedBlocks.stack)


def unroll_layers(model: Model) -> Model:
    """A copy of the model whose blocks are modules of their own, so that each can be changed by itself.

    Args:
        model: any Flax NNX module with an `Encoder` or a `Decoder` inside.

    Returns:
        The copy, whose `blocks` are lists.

    Examples:
        >>> from flax import nnx
        >>> from jaxattn.nn import Encoder, unroll_layers
        >>> encoder = unroll_layers(Encoder(4, 8, 2, rngs=nnx.Rngs(0)))
        >>> encoder.blocks[3].mlp.up.kernel.shape
        (8, 32)
    """
    return _convert(model, ScannedBlocks, lambda blocks: nnx.List(list(blocks)))


def _convert(model: Model, kind: type[Any], convert: Callable[[Any], Any]) -> Model:
    changed = nnx.clone(model)
    for _, module in list(nnx.iter_modules(changed)):
        if isinstance(module, Stack) and isinstance(module.blocks, kind):
            module.blocks = convert(module.blocks)
    return changed


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
