"""From checked arguments of any shape to the sweeps over one sequence, and back."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.arguments import check_qkv, check_scale
from jaxattn.core.checks import check_broadcastable, check_dtype
from jaxattn.core.grouped import Call, prepare
from jaxattn.tree.sweeps import Biases, Leaves
from jaxattn.tree.tree import Tree

SiblingBias = Sequence[Any] | None


# (tree, leaves, biases, scale, include_self) -> anything, of one sequence.
Function = Callable[[Tree, Leaves, Biases, float, bool], Any]


class Prepared(NamedTuple):
    """A checked call: arrays with a batch axis, the biases by head, the factor on the scores."""

    call: Call
    biases: Biases
    scale: float


def check_tree(tree: Any, batch: int | None = None, length: int | None = None) -> None:
    """Raises unless `tree` is a Tree that fits the batch and the length."""
    if not isinstance(tree, Tree):
        raise ValueError(
            f"tree must be a jaxattn.Tree, such as Tree.uniform(length, 64); got {type(tree).__name__}."
        )
    if length is not None and tree.length != length:
        raise ValueError(f"tree must be over T = {length} tokens; got a tree of length {tree.length}.")
    if tree.is_batched and batch is not None and tree.families[0].shape[0] != batch:
        raise ValueError(f"tree must be one or B = {batch} trees; got {tree.families[0].shape[0]}.")


def check_sibling_bias(sibling_bias: SiblingBias, tree: Tree, num_heads: int) -> None:
    """Raises unless there is one bias, or None, a level."""
    if sibling_bias is None:
        return
    if not isinstance(sibling_bias, Sequence) or len(sibling_bias) != tree.height:
        found = len(sibling_bias) if isinstance(sibling_bias, Sequence) else type(sibling_bias).__name__
        raise ValueError(
            f"sibling_bias must be a list of one array or None a level, {tree.height} from the leaves up; "
            f"got {found}."
        )
    for level, (bias, size) in enumerate(zip(sibling_bias, tree.branching, strict=True)):
        if bias is not None:
            name = f"sibling_bias[{level}]"
            check_dtype(name, bias, jnp.floating, "floating point")
            check_broadcastable(name, bias, (num_heads, size, size), "(N, b, b)")
            if jnp.shape(bias)[1:] != (size, size):
                raise ValueError(f"{name} must be (N or 1, {size}, {size}); got {jnp.shape(bias)}.")


def prepare_tree_call(
    query: Array,
    key: Array,
    value: Array,
    tree: Tree,
    key_bias: Array | None,
    sibling_bias: SiblingBias,
    scale: float | None,
) -> Prepared:
    """Checks everything and splits heads into groups."""
    check_qkv(query, key, value)
    num_heads = query.shape[-2]
    batched = jnp.ndim(query) == 4
    length = query.shape[-3]
    if key.shape[-3] != length:
        raise ValueError(
            f"key must have as many tokens as query, T = {length}: one tree is over both; got S = {key.shape[-3]}."
        )
    check_tree(tree, query.shape[0] if batched else None, length)
    if tree.is_batched and not batched:
        raise ValueError("tree must be a single one for arrays without a batch axis; got a batch of trees.")
    check_sibling_bias(sibling_bias, tree, num_heads)
    call = prepare(query, key, value, key_bias)
    return Prepared(call, grouped_biases(sibling_bias, tree, call), check_scale(scale, query.shape[-1]))


def grouped_biases(sibling_bias: SiblingBias, tree: Tree, call: Call) -> Biases:
    """(N or 1, b, b) a level as (K, b, G, b) or (1, b, 1, b)."""
    if sibling_bias is None:
        return [None] * tree.height
    groups = call.query.shape[2:4]
    return [
        None
        if bias is None
        else jnp.moveaxis(
            jnp.asarray(bias, call.query.dtype).reshape(
                *((1, 1) if bias.shape[0] == 1 else groups), *bias.shape[1:]
            ),
            1,
            2,
        )
        for bias in sibling_bias
    ]


def over_sequences(function: Function, tree: Tree, prepared: Prepared, include_self: bool) -> Any:
    """`function` of one sequence, heads first, over the batch."""
    return _over_sequences(function, tree, prepared.call, prepared.biases, prepared.scale, bool(include_self))


# Compiled once a shape, so that calls outside of any jit do not compile operation by operation.
@partial(jax.jit, static_argnums=(0, 4, 5))
def _over_sequences(
    function: Function, tree: Tree, call: Call, biases: Biases, scale: float, include_self: bool
) -> Any:

    def one(tree: Tree, call: Call) -> Any:
        leaves = Leaves(
            jnp.moveaxis(call.query, 0, 1),
            jnp.moveaxis(call.key, 0, 1),
            jnp.moveaxis(call.value, 0, 1),
            jnp.moveaxis(call.key_bias, 0, 1),
        )
        return function(tree, leaves, biases, scale, include_self)

    return jax.vmap(one, (0 if tree.is_batched else None, 0))(tree, call)
