"""Causal hierarchical attention one call at a time, over the open nodes of a tree."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxattn.core.checks import check_flag
from jaxattn.core.decode import check_sizes, check_step, finish, num_new, with_heads_of_state
from jaxattn.core.explicit import automatic_axes, but_width, same
from jaxattn.core.mesh import vary_like
from jaxattn.core.padding import fold_lengths, zero_padding
from jaxattn.core.pytree import serializable
from jaxattn.tree.arguments import SiblingBias, check_ordered, check_tree, group_biases
from jaxattn.tree.decoding import Token, step_token
from jaxattn.tree.pooling import Biases
from jaxattn.tree.prefill import step_tokens
from jaxattn.tree.tree import Tree


@serializable
class HierarchicalState(NamedTuple):
    """What later tokens need: at every level, the children so far of the node that is being filled.

    A level has mean keys and values (B, heads, b, H + V), side by side since TPUs pad narrow rows, and log weights
    (B, heads, b), −inf at children to come. parent (B, L) is the node that is being filled, −1 before the first;
    length (B,) counts the tokens.
    """

    mean: tuple[Float[Array, "B heads _ HV"], ...]
    log_weight: tuple[Float[Array, "B heads _"], ...]
    parent: Int[Array, "B L"]
    length: Int[Array, " B"]


def hierarchical_attention_init_state(
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    tree: Tree,
    *,
    num_heads: int | None = None,
    value_dim: int | None = None,
    dtype: Any = jnp.float32,
) -> HierarchicalState:
    """The state before the first token: Σ b_l nodes, O(b log T) for a tree over T tokens.

    Args:
        batch: sequences decoded together, B.
        num_kv_heads: key/value heads, K.
        head_dim: width H of queries and keys.
        tree: the tree that every step will be given; for generation `Tree.uniform(max_length, branching)`.
        num_heads: query heads, N, if the key bias differs between query heads that share keys: each then keeps means
            of its own. None for means a key/value head.
        value_dim: width V of the values, `head_dim` when None.
        dtype: dtype of the means.

    Returns:
        A pytree of fixed shapes.

    Raises:
        ValueError: a size is not positive, K does not divide N, or the tree is unordered or of another batch.

    Examples:
        >>> from jaxattn import Tree
        >>> state = hierarchical_attention_init_state(1, 2, 8, Tree.uniform(4096, 16))
        >>> [mean.shape for mean in state.mean]
        [(1, 2, 16, 16), (1, 2, 16, 16), (1, 2, 16, 16)]
    """
    value_dim = head_dim if value_dim is None else value_dim
    heads = check_sizes(
        batch=batch, num_kv_heads=num_kv_heads, num_heads=num_heads, head_dim=head_dim, value_dim=value_dim
    )
    check_tree(tree, batch)
    check_ordered(tree)

    def zeros(*width: int) -> tuple[Array, ...]:
        return tuple(jnp.zeros((batch, heads, size, *width), dtype) for size in tree.branching)

    return HierarchicalState(
        mean=zeros(head_dim + value_dim),
        log_weight=tuple(x - jnp.inf for x in zeros()),
        parent=jnp.full((batch, tree.height), -1, jnp.int32),
        length=jnp.zeros((batch,), jnp.int32),
    )


@automatic_axes(same, but_width)
def hierarchical_attention_step(
    state: HierarchicalState,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K V"],
    tree: Tree,
    *,
    key_bias: Float[Array, "#B T #N"] | None = None,
    sibling_bias: SiblingBias = None,
    scale: float | None = None,
    include_self: bool = True,
    query_seq_lengths: Int[Array, " B"] | None = None,
) -> tuple[HierarchicalState, Float[Array, "B T N V"]]:
    """Lets T new tokens attend causally to all tokens so far and to each other, and adds them to the state.

    Any split of a sequence into calls gives the causal `hierarchical_attention` of the whole, up to rounding. A token
    scores the Σ b_l children of the open nodes and updates their means. Several tokens are processed level by level
    in a uniform tree, in time O(T Σ b_l) whatever the length of the tree, and one by one in a tree with tables.

    Args:
        state: from `hierarchical_attention_init_state` or an earlier step.
        query: (B, T, N, H), T >= 1 new tokens.
        key: (B, T, K, H).
        value: (B, T, K, V).
        tree: the tree of the whole sequence, the same in every step.
        key_bias: (B or 1, T, N or 1), added to the scores of the new keys in all later steps; −inf removes them.
        sibling_bias: see `hierarchical_attention`; the same in every step.
        scale: factor on the scores, 1/sqrt(H) when None; the same in every step.
        include_self: whether a token attends to itself; the same in every step.
        query_seq_lengths: (B,) int, how many of the T tokens each sequence has; see `dot_product_attention_step`.

    Returns:
        (new state, output (B, T, N, V) in the query's dtype). For a sequence of more tokens than the tree has, all
        outputs are NaN.

    Raises:
        ValueError: a shape or dtype does not fit the state or the tree.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import Tree
        >>> tree = Tree.uniform(100, 4)
        >>> x = jnp.ones((1, 3, 2, 8))
        >>> state = hierarchical_attention_init_state(1, 2, 8, tree)
        >>> state, out = hierarchical_attention_step(state, x, x, x, tree)
        >>> out.shape, state.length.tolist()
        ((1, 3, 2, 8), [3])
    """
    call = fold_lengths(zero_padding(check_step(query, key, value, key_bias, scale, query_seq_lengths)))
    check_tree(tree, query.shape[0])
    branching = tuple(x.shape[2] for x in state.mean)
    if branching != tree.branching:
        raise ValueError(f"state must be for a tree of branching {tree.branching}; got one of {branching}.")
    call = with_heads_of_state(call, state.parent.shape[0], state.mean[0].shape[1]).with_key_weights()
    biases = group_biases(sibling_bias, tree, call)
    width, expected = state.mean[0].shape[-1], key.shape[-1] + value.shape[-1]
    if width != expected:
        raise ValueError(f"state must have means of width H + V = {expected}; got {width}.")
    tree = jax.tree.map(jnp.asarray, tree)
    dtype = call.key_bias.dtype
    mean = jnp.concatenate([call.key, call.value], axis=-1).astype(dtype)
    tokens = Token(call.query.astype(dtype), mean, call.key_bias[..., 0])
    count = jnp.broadcast_to(num_new(call), state.length.shape)
    include_self = check_flag("include_self", include_self)
    levels, out = _advance(tree, state, tokens, count, biases, call.scale, include_self)
    length = state.length + count
    out = finish(call, out, length, tree.length)
    means, log_weights, parent = levels
    return HierarchicalState(means, log_weights, parent, length), out.astype(query.dtype)


def _advance(
    tree: Tree,
    state: HierarchicalState,
    tokens: Token,
    count: Array,
    biases: Biases,
    scale: float,
    include_self: bool,
) -> tuple[Any, Array]:
    """The state without its length after the first `count` tokens of every row, and the outputs (B, T, K, G, V)."""
    start: Any = vary_like(tuple(state[:-1]), tokens, count)

    def keep_dtype(levels: Any) -> Any:
        return jax.tree.map(lambda new, old: new.astype(old.dtype), tuple(levels), start)

    length = tokens.query.shape[1]
    if tree.is_uniform and length > 1:
        at_once = jax.vmap(partial(step_tokens, tree, biases=biases, scale=scale, include_self=include_self))
        levels, out = at_once(start, tokens, state.length, count)
        return keep_dtype(levels), out
    step = jax.vmap(
        partial(step_token, biases=biases, scale=scale, include_self=include_self),
        (0 if tree.is_batched else None, 0, 0, 0),
    )

    def body(levels: Any, token: tuple[Token, Array]) -> Any:
        levels, out = step(tree, levels, *token)
        return keep_dtype(levels), out

    order = jnp.arange(length, dtype=state.length.dtype)
    positions = jnp.where(order < count[:, None], state.length[:, None] + order, -1)
    by_token = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (tokens, positions))
    if length == 1:  # without the overhead of a loop
        levels, out = body(start, jax.tree.map(lambda x: x[0], by_token))
        return levels, out[:, None]
    levels, out = lax.scan(body, start, by_token)
    return levels, jnp.moveaxis(out, 0, 1)
