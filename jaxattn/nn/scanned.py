"""Blocks applied one after another: modules of their own, or one block with a leading axis of layers, scanned."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.parameters import LAYERS, axes_of, axis_names
from jaxattn.nn.blocks import Block
from jaxattn.nn.sharding import gather_parameters

# What a block keeps for its backward pass; the rest is rematerialised there.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class ScannedBlocks(nnx.Module):
    """Blocks of one structure as one, `stacked`, whose variables have a leading axis of layers.

    A call is a scan, so that the time to compile does not grow with the number of layers. `blocks[n]` is a copy of
    layer n, `blocks[m:n]` a list of them, and `blocks[n] = block` replaces layer n.

    Args:
        stacked: the block, from `ScannedBlocks.create` or `ScannedBlocks.stack`.

    Examples:
        >>> from flax import nnx
        >>> from jaxattn.nn import Encoder
        >>> encoder = Encoder(3, 8, 2, scan_layers=True, rngs=nnx.Rngs(0))
        >>> encoder.blocks.stacked.mlp.up.kernel.shape, encoder.blocks[0].mlp.up.kernel.shape
        ((3, 8, 32), (8, 32))
        >>> encoder.blocks[2] = encoder.blocks[0]
    """

    def __init__(self, stacked: Block):
        self.stacked = stacked
        for _, variable in nnx.iter_graph(stacked):
            if isinstance(variable, nnx.Variable):
                names = axes_of(variable)
                own = len(variable.shape) - 1
                variable.set_metadata(**axis_names(LAYERS, *names[len(names) - own :]))

    @classmethod
    def create(cls, count: int, make: Callable[[nnx.Rngs], Block], rngs: nnx.Rngs) -> "ScannedBlocks":
        """`count` blocks made by `make`, each from random streams of its own."""
        return cls(nnx.vmap(make)(rngs.split(count)))

    @classmethod
    def stack(cls, blocks: Sequence[Block]) -> "ScannedBlocks":
        """Blocks that exist.

        Raises:
            ValueError: no blocks, or blocks of different structure, such as with different mechanisms.
        """
        if not blocks:
            raise ValueError("blocks must be at least one block; got none.")
        graphs, states = zip(*map(nnx.split, blocks), strict=True)
        if any(graph != graphs[0] for graph in graphs):
            raise ValueError("blocks must have the same structure to be scanned; some have other parts.")
        return cls(nnx.merge(graphs[0], jax.tree.map(lambda *xs: jnp.stack(xs), *states)))

    def __len__(self) -> int:
        return jax.tree.leaves(nnx.state(self.stacked))[0].shape[0]

    def __iter__(self) -> Iterator[Block]:
        return (self[n] for n in range(len(self)))

    @overload
    def __getitem__(self, layer: int) -> Block: ...

    @overload
    def __getitem__(self, layer: slice) -> list[Block]: ...

    def __getitem__(self, layer: int | slice) -> Block | list[Block]:
        index = range(len(self))[layer]
        if isinstance(index, range):
            return [self[n] for n in index]
        graph, state = nnx.split(self.stacked)
        block = nnx.merge(graph, jax.tree.map(lambda x: x[index], state))
        for _, variable in nnx.iter_graph(block):
            if isinstance(variable, nnx.Variable):
                variable.set_metadata(out_sharding=axes_of(variable)[1:])
        return block

    def __setitem__(self, layer: int, block: Block) -> None:
        index = range(len(self))[layer]
        if nnx.graphdef(block) != nnx.graphdef(self[index]):
            raise ValueError("block must have the structure of the scanned ones; see unroll_layers.")
        leaves, structure = jax.tree.flatten(nnx.state(self.stacked))
        new = jax.tree.leaves(nnx.state(block))
        changed = [x.at[index].set(part) for x, part in zip(leaves, new, strict=True)]
        nnx.update(self.stacked, jax.tree.unflatten(structure, changed))


def apply_blocks(
    blocks: Any,
    function: Callable[[Block, Array, nnx.Rngs | None], Array],
    x: Float[Array, "B T D"],
    *,
    remat: str,
    rngs: nnx.Rngs | None,
) -> Float[Array, "B T D"]:
    """x <- function(block, x, rngs) for every block.

    Args:
        blocks: of the stack, an `nnx.List` or `ScannedBlocks`.
        function: applies one block, which may change its variables that are not learned.
        x: the input of the first.
        remat: a name of `REMAT`.
        rngs: random streams; scanned blocks get a fork each.
    """
    policy = REMAT[remat]
    if isinstance(blocks, ScannedBlocks):
        return _scan(blocks, function, x, policy, rngs)
    for block in blocks:
        apply = function if policy is None else nnx.remat(function, policy=policy)
        x = apply(block, x, rngs)
    return x


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _scan(
    blocks: ScannedBlocks, function: Callable[..., Array], x: Array, policy: Any, rngs: nnx.Rngs | None
) -> Array:
    graph, learned, *others = nnx.split(blocks.stacked, nnx.Param, ...)
    variables, structure = jax.tree.leaves(learned, is_leaf=_is_variable), jax.tree.structure(learned)
    names = [axes_of(variable)[1:] for variable in variables]
    streams, keys = nnx.split(None if rngs is None else rngs.split(len(blocks)))

    def body(x: Array, layer: Any) -> tuple[Array, Any]:
        learned, others, keys = layer
        learned = jax.tree.unflatten(structure, gather_parameters(jax.tree.leaves(learned), names))
        block = nnx.merge(graph, learned, *others)
        x = function(block, x, nnx.merge(streams, keys))
        return x, nnx.state(block, nnx.Not(nnx.Param))

    if x.dtype != jnp.result_type(x, *jax.tree.leaves(learned)):
        # Parameters of a wider dtype may widen x, in the first layer.
        first = jax.tree.map(lambda x: x[0], (learned, others, keys))
        x = x.astype(jax.eval_shape(body, x, first)[0].dtype)
    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    x, rest = jax.lax.scan(body, x, (learned, others, keys))
    nnx.update(blocks.stacked, rest)
    return x
