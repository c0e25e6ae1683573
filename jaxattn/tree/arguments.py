"""Checks of trees and sibling biases, and the checked call over which trees attend."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.core.call import Call, accumulation_dtype
from jaxattn.core.checks import check_broadcastable, check_dtype, check_flag
from jaxattn.core.platform import by_platform, computed_once
from jaxattn.core.sequence import check_axis
from jaxattn.tree.blocks import BLOCK, Blocks, cut
from jaxattn.tree.pooling import Biases, Leaves
from jaxattn.tree.tree import Tree

SiblingBias = Sequence[Any] | None

# (tree, leaves, biases, scale, include_self, blocks) -> arrays of one sequence.
Function = Callable[[Tree, Leaves, Biases, float, bool, Blocks], Array]


def check_tree(tree: Any, batch: int | None = None, length: int | None = None) -> None:
    """Raises unless `tree` is a Tree that fits the batch size (None: without a batch axis) and the length."""
    if not isinstance(tree, Tree):
        raise ValueError(
            f"tree must be a jaxattn.Tree, such as Tree.uniform(length, 64); got {type(tree).__name__}."
        )
    if length is not None and tree.length != length:
        raise ValueError(f"tree must be over T = {length} tokens; got a tree of length {tree.length}.")
    if tree.is_batched and batch is None:
        raise ValueError("tree must be unbatched for arrays without a batch axis; got a batch of trees.")
    if tree.is_batched and tree.children[0].shape[0] != batch:
        raise ValueError(f"tree must be one or B = {batch} trees; got {tree.children[0].shape[0]}.")


def check_ordered(tree: Tree) -> None:
    """Raises unless the tree can be causal."""
    if not tree.is_ordered:
        raise ValueError(
            "tree must have its leaves in sequence order for causal attention, so that every node spans consecutive "
            "tokens; got an unordered tree."
        )


def check_whole(
    call: Call, tree: Tree, sibling_bias: SiblingBias, axis_name: str | None = None
) -> tuple[Call, Biases]:
    """Checks a tree and its biases against the call over all its tokens; returns what `over_batch` takes."""
    check_axis(axis_name)
    batch, length = call.query.shape[:2]
    if call.key.shape[1] != length:
        raise ValueError(
            f"key must have as many tokens as query, T = {length}: one tree is over both; got {call.key.shape[1]}."
        )
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    check_tree(tree, batch if call.batched else None, length * devices)
    if call.is_causal:
        check_ordered(tree)
    call = call.with_own_sums()
    return call, group_biases(sibling_bias, tree, call)


def group_biases(sibling_bias: SiblingBias, tree: Tree, call: Call) -> Biases:
    """Checks biases (N or 1, b, b), and returns them as (K, b, G, b) or (1, b, 1, b)."""
    if sibling_bias is None:
        return [None] * tree.height
    if not isinstance(sibling_bias, Sequence) or len(sibling_bias) != tree.height:
        found = len(sibling_bias) if isinstance(sibling_bias, Sequence) else type(sibling_bias).__name__
        raise ValueError(
            f"sibling_bias must be a list of one array or None a level, {tree.height} from the leaves up; "
            f"got {found}."
        )
    heads = call.query.shape[2:4]
    biases: list[Array | None] = []
    for level, (bias, size) in enumerate(zip(sibling_bias, tree.branching, strict=True)):
        if bias is None:
            biases.append(None)
            continue
        name = f"sibling_bias[{level}]"
        check_dtype(name, bias, jnp.floating, "floating point")
        check_broadcastable(name, bias, (heads[0] * heads[1], size, size), "(N, b, b)")
        if jnp.shape(bias)[1:] != (size, size):
            raise ValueError(f"{name} must be (N or 1, {size}, {size}); got {jnp.shape(bias)}.")
        bias = jnp.asarray(bias, accumulation_dtype(call.query))
        bias = bias.reshape(*((1, 1) if bias.shape[0] == 1 else heads), size, size)
        biases.append(jnp.moveaxis(bias, 1, 2))
    return biases


class Plan(NamedTuple):
    """What is static about one call.

    Attributes:
        function: of one sequence.
        include_self: whether a token attends to itself.
        blocks: how tokens are cut.
    """

    function: Function
    include_self: bool
    blocks: Blocks


def choose_plan(
    function: Function, tree: Tree, include_self: bool, platform: str, axis_name: str | None = None
) -> Plan:
    """The plan of a platform: all at once on a CPU, and up to two blocks, for which all platforms share a program."""
    length = tree.length if axis_name is None else tree.length // lax.axis_size(axis_name)
    blocks = Blocks(BLOCK, axis_name)
    if platform == "cpu" or length <= 2 * BLOCK or cut(tree, blocks, length) is None:
        blocks = Blocks(None, axis_name)
    return Plan(function, include_self, blocks)


def over_batch(function: Function, tree: Tree, call: Call, biases: Biases, include_self: bool) -> Array:
    """`function` of each sequence of a checked call, heads first."""
    include_self = check_flag("include_self", include_self)
    choose = partial(choose_plan, function, tree, include_self)
    return by_platform(choose, attend_planned, tree, call, biases)


# Jitted, so that calls outside of jit do not compile operation by operation.
@partial(jax.jit, static_argnums=0)
def attend_planned(plan: Plan, tree: Tree, call: Call, biases: Biases) -> Array:
    """The function of a plan, of each sequence of a checked call, heads first."""
    if call.key_bias is not None:
        call = call.replace(key_bias=computed_once(call.key_bias))
    call = call.with_key_weights()

    def one(tree: Tree, call: Call) -> Array:
        arrays = call.query, call.key, call.value, call.key_bias[..., 0]
        leaves = Leaves(*(jnp.moveaxis(x, 0, 1) for x in arrays))
        return plan.function(tree, leaves, biases, call.scale, plan.include_self, plan.blocks)

    return jax.vmap(one, (0 if tree.is_batched else None, 0))(tree, call)
