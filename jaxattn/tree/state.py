"""Causal hierarchical attention one call at a time, over the open families of a tree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxattn.core.arguments import check_qkv, check_scale
from jaxattn.core.checks import check_rank
from jaxattn.core.decode import check_sizes
from jaxattn.core.grouped import prepare
from jaxattn.tree.call import SiblingBias, check_sibling_bias, check_tree, grouped_biases
from jaxattn.tree.sweeps import Biases, divided, pool
from jaxattn.tree.tree import Tree


class HierarchicalState(NamedTuple):
    """What later tokens need: at every level, the means of the nodes of the family that is being filled.

    A level has key (B, heads, b, H), value (B, heads, b, V) and log_weight (B, heads, b), −inf at nodes to come;
    family (B, L) says which family is in a level's arrays (−1 before the first) and length how many tokens came.
    """

    key: tuple[Float[Array, "B heads _ H"], ...]
    value: tuple[Float[Array, "B heads _ V"], ...]
    log_weight: tuple[Float[Array, "B heads _"], ...]
    family: Int[Array, "B L"]
    length: Int[Array, ""]


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
        ValueError: a size is not positive, K does not divide N, or the tree is not ordered or of another batch.

    Examples:
        >>> from jaxattn import Tree
        >>> state = hierarchical_attention_init_state(1, 2, 8, Tree.uniform(4096, 16))
        >>> [key.shape for key in state.key]
        [(1, 2, 16, 8), (1, 2, 16, 8), (1, 2, 16, 8)]
    """
    value_dim = head_dim if value_dim is None else value_dim
    heads = check_sizes(
        batch=batch, num_kv_heads=num_kv_heads, num_heads=num_heads, head_dim=head_dim, value_dim=value_dim
    )
    check_tree(tree, batch)
    if not tree.is_ordered:
        raise ValueError("tree must have its leaves in the order of the sequence; got an unordered tree.")

    def zeros(*width: int) -> tuple[Array, ...]:
        return tuple(jnp.zeros((batch, heads, size, *width), dtype) for size in tree.branching)

    return HierarchicalState(
        key=zeros(head_dim),
        value=zeros(value_dim),
        log_weight=tuple(x - jnp.inf for x in zeros()),
        family=jnp.full((batch, tree.height), -1, jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


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
) -> tuple[HierarchicalState, Float[Array, "B T N V"]]:
    """Lets T new tokens attend causally to all tokens so far and to each other, and adds them to the state.

    Any split of a sequence into calls gives the causal `hierarchical_attention` of the whole, up to rounding. A token
    meets the Σ b_l nodes of the open families and makes their means anew; several are taken one after the other.

    Args:
        state: from `hierarchical_attention_init_state` or an earlier step.
        query: (B, T, N, H), T >= 1 new tokens.
        key: (B, T, K, H).
        value: (B, T, K, V).
        tree: the tree of the whole sequence, the same in every step.
        key_bias: (B or 1, T, N or 1), added to the scores of the new keys for good; −inf removes them.
        sibling_bias: see `hierarchical_attention`; the same in every step.
        scale: factor on the scores, 1/sqrt(H) when None; the same in every step.
        include_self: whether a token attends to itself; the same in every step.

    Returns:
        (new state, output (B, T, N, V) in the query's dtype). Once there are more tokens than the tree has, every
        output is NaN: no node would be right.

    Raises:
        ValueError: a shape or dtype does not fit the state or the tree.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import Tree
        >>> tree = Tree.uniform(100, 4)
        >>> x = jnp.ones((1, 3, 2, 8))
        >>> state, out = hierarchical_attention_step(hierarchical_attention_init_state(1, 2, 8, tree), x, x, x, tree)
        >>> out.shape, int(state.length)
        ((1, 3, 2, 8), 3)
    """
    check_rank("query", query, (4,), "(B, T, N, H)")
    check_qkv(query, key, value)
    check_tree(tree, query.shape[0])
    check_sibling_bias(sibling_bias, tree, query.shape[2])
    count, num_heads = query.shape[1:3]
    if key.shape[1] != count:
        raise ValueError(f"key must hold the query's T = {count} tokens; got {key.shape[1]}.")
    heads = state.family.shape[0], state.key[0].shape[1]
    if heads[1] == num_heads != key.shape[2]:
        key, value = (jnp.repeat(x, num_heads // key.shape[2], axis=2) for x in (key, value))
    call = prepare(query, key, value, key_bias)
    found = (query.shape[0], call.key.shape[2])
    if heads != found or tuple(x.shape[2] for x in state.key) != tree.branching:
        raise ValueError(
            f"state must be for (batch, heads) = {found}, the heads being the query's where key_bias differs between "
            f"them, and for a tree of branching {tree.branching}; got {heads} and "
            f"{tuple(x.shape[2] for x in state.key)}."
        )
    tree = jax.tree.map(jnp.asarray, tree)
    biases, factor = grouped_biases(sibling_bias, tree, call), check_scale(scale, query.shape[-1])
    step = jax.vmap(
        lambda tree, levels, token, at: _one(tree, levels, token, at, biases, factor, include_self),
        (0 if tree.is_batched else None, 0, 0, None),
    )

    def body(carry: Any, token: Any) -> Any:
        levels, length = carry
        levels, out = step(tree, levels, token, length)
        return (levels, length + 1), out

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (call.query, call.key, call.value, call.key_bias))
    levels, length = state[:-1], state.length
    if count == 1:
        (levels, length), out = body((levels, length), jax.tree.map(lambda x: x[0], tokens))
        out = out[None]
    else:
        (levels, length), out = lax.scan(body, (levels, length), tokens)
    out = jnp.moveaxis(out, 0, 1).reshape(*query.shape[:3], -1)
    out = jnp.where(length <= tree.length, out, jnp.nan)
    return HierarchicalState(*levels, length), out.astype(query.dtype)


def _path(tree: Tree, token: Array) -> tuple[list[Array], list[Array]]:
    """The slots of a token's ancestors among their siblings, and the families, from the leaves up; −1 for none."""
    slots, families = [], []
    node = token
    for level, size in enumerate(tree.branching):
        if tree.is_uniform:
            place = node
        else:
            place = jnp.take(tree.places[level], jnp.maximum(node, 0), mode="clip")
            place = jnp.where(node < 0, -1, place)
        slots.append(jnp.where(place < 0, -1, place % size))
        node = jnp.where(place < 0, -1, place // size)
        families.append(node)
    return slots, families


def _one(
    tree: Tree, levels: Any, token: Any, at: Array, biases: Biases, scale: float, include_self: bool
) -> tuple[Any, Array]:
    """One token of one sequence: (levels, query (K, G, H), key (K, H), value, log weight (K,)) -> (levels, out)."""
    keys, values, log_weights, family = levels
    query, key, value, log_weight = token
    slots, families = _path(tree, at)
    in_tree = slots[0] >= 0
    logits, met, new = [], [], []
    node = key, value, jnp.where(in_tree, log_weight, -jnp.inf)
    for level, (slot, bias) in enumerate(zip(slots, biases, strict=True)):
        index = jnp.arange(tree.branching[level])
        same = families[level] == family[level]
        weights = jnp.where(same, log_weights[level], -jnp.inf)
        # A node that is being filled holds the token already: it is met below, part by part.
        here = index == slot
        table = (
            jnp.where(here[:, None], node[0][:, None], keys[level]),
            jnp.where(here[:, None], node[1][:, None], values[level]),
            jnp.where(here, node[2][:, None], weights),
        )
        score = scale * jnp.einsum("kgh,kbh->kgb", query, table[0])
        if bias is not None:
            score += jnp.take(bias, jnp.maximum(slot, 0), axis=1)
        seen = index <= slot if level == 0 and include_self else index < slot
        logits.append(jnp.where(seen, score + table[2][:, None, :], -jnp.inf))
        met.append(table[1])
        new.append(table)
        log_total, mean_key, mean_value = pool(table[2], table[0], table[1])
        node = mean_key, mean_value, log_total
    logit = jnp.concatenate(logits, axis=-1)
    top = logit.max(axis=-1, keepdims=True)
    powers = jnp.exp(logit - jnp.where(jnp.isfinite(top), top, 0))
    out = jnp.einsum("kgb,kbv->kgv", powers, jnp.concatenate(met, axis=1))
    out = divided(out, powers.sum(axis=-1)[..., None])
    kept = [
        tuple(jnp.where(in_tree, after, before) for after, before in zip(column, old, strict=True))
        for column, old in zip(zip(*new, strict=True), (keys, values, log_weights), strict=True)
    ]
    return (*kept, jnp.where(in_tree, jnp.stack(families), family)), out
