"""What the fused kernels of trees cannot do."""

import jax.numpy as jnp

from jaxattn.core.call import Call, accumulation_dtype
from jaxattn.core.checks import is_known
from jaxattn.core.pallas.choice import LANES
from jaxattn.tree.pallas.tiling import TILE, cut_tiles
from jaxattn.tree.pooling import Biases
from jaxattn.tree.tree import Tree

# What fits into VMEM: 8 query heads a key head of 64 bfloat16 numbers compile, and others in proportion.
_WIDEST = 256
_LEAF_FAMILIES = 8, 512
_TOKEN_BYTES = 1024  # of all query heads of a key head
_PAIR_BYTES = 2048  # of a token and the others of its block, with all query heads
_MOST_SLOTS = 512


def pallas_cannot(tree: Tree, call: Call, biases: Biases) -> str | None:
    """Why the fused kernels cannot take a call in the form of `Call.with_own_sums`, or None if they can."""
    if not is_known(*call.query.shape):
        return f"needs sizes that are known at trace time; got {call.query.shape}."
    if not tree.is_uniform:
        return f"takes trees of Tree.uniform only; got {tree}. Use implementation='xla'."
    if any(bias is not None for bias in biases):
        return "takes no sibling_bias; use implementation='xla'."
    if accumulation_dtype(call.query, call.key, call.value) == jnp.float64:
        return "takes no float64; use implementation='xla'."
    for name, width in (("query and key", call.query.shape[-1]), ("value", call.value.shape[-1])):
        if width > _WIDEST:
            return f"takes {name} up to a width of {_WIDEST}; got {width}. Use implementation='xla'."
    least, most = _LEAF_FAMILIES
    tiling = cut_tiles(tree.branching)
    if not tiling.branching or not least <= tiling.branching[0] <= most:
        return (
            f"takes trees whose leaf families have a power of two of tokens, {least} to {most}; "
            f"got {tree.branching[0]}. Use implementation='xla'."
        )
    width, size = max(call.query.shape[-1], call.value.shape[-1]), call.query.dtype.itemsize
    groups = min(_TOKEN_BYTES // (size * width), _PAIR_BYTES // (size * tiling.block))
    if call.query.shape[3] > groups:
        return (
            f"takes up to {groups} query heads a key head of this width, dtype and size of a leaf family; got "
            f"{call.query.shape[3]}. Use implementation='xla'."
        )
    if tiling.chunk < LANES:
        return (
            f"needs subtrees of {LANES} to {TILE} tokens whose families have powers of two; got the branching "
            f"{tree.branching}, of which {tiling.chunk} tokens are such. Use implementation='xla'."
        )
    if call.is_causal and sum(tiling.crown) > _MOST_SLOTS:
        return (
            f"takes up to {_MOST_SLOTS} siblings at all levels above {tiling.chunk} tokens in causal attention; got "
            f"the branching {tree.branching}. Use implementation='xla'."
        )
    return None
