"""Hierarchical self-attention: attention over a tree, as close to softmax as the tree's blocks allow."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn.tree.call import Prepared, SiblingBias, over_sequences, prepare_tree_call
from jaxattn.tree.causal import attend_causal
from jaxattn.tree.sweeps import Biases, Leaves, attend, bottom_up
from jaxattn.tree.tree import Tree


def hierarchical_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T K H"],
    value: Float[Array, "*B T K V"],
    tree: Tree,
    *,
    key_bias: Float[Array, "*#B T #N"] | None = None,
    sibling_bias: SiblingBias = None,
    scale: float | None = None,
    is_causal: bool = False,
    include_self: bool = True,
) -> Float[Array, "*B T N V"]:
    r"""Self-attention over a tree whose leaves are the tokens, in O(M b²) time for M nodes in families of b.

    Bidirectional: with means ρ over the leaves of a node, n(D) leaves and S(C→D) = scale ρ_q(C)·ρ_k(D) + bias(C, D),

        Z(C) = exp(−φ(C)) + Σ_{D sibling of C} n(D) exp S(C→D),     φ(A) = −Σ_{C child of A} n(C)/n(A) log Z(C).

    A node C spends exp(−φ(C))/Z(C) of its mass below itself and n(D) exp S(C→D)/Z(C) on every sibling D, evenly over
    D's leaves; φ of a leaf is −S(i→i), or +∞ without `include_self`. Among all attention matrices that are constant
    on the blocks (leaves of C) × (leaves of D) this has the least summed KL divergence from softmax; a tree of one
    family is softmax.

    Causal: token i scores with its own query the mean key of each earlier sibling D of each of its ancestors,

        logit(i, D) = scale q_i·ρ_k(D) + bias + log n(D),     and itself with include_self,

    in one softmax; D contributes its mean value. It is the closest to causal softmax among the matrices whose row i
    is constant on each such D. (Masking later siblings in the bidirectional recursion would not be causal: ρ_q and φ
    of i's ancestors hold later tokens.) O(T Σ b_l) time for families of b_l at level l.

    A key bias c_j makes leaves count e^(c_j) as keys: ρ_k and ρ_v are means with these weights and n(D) is their sum,
    while ρ_q and n(C)/n(A) still count tokens. A token with key bias −inf is in no mean and no count.

    Args:
        query: (B, T, N, H), or (T, N, H) with every other array lacking the batch axis too.
        key: (B, T, K, H); K divides N (grouped queries).
        value: (B, T, K, V).
        tree: over T tokens; one for all sequences, or `Tree.stack` of one for each.
        key_bias: (B or 1, T, N or 1), natural log units, added to every score of key j; −inf removes the token.
        sibling_bias: for each level from the leaves up, an array (N or 1, b_l, b_l) added to the score of child c on
            child d of one family, or None; at level 0, entry (c, c) is a leaf's score on itself.
        scale: factor on the scores, 1/sqrt(H) when None.
        is_causal: token i meets only itself and earlier tokens; needs `tree.is_ordered`.
        include_self: whether a token attends to itself, as softmax does; False is the published form.

    Returns:
        (B, T, N, V) in the query's dtype; 0 for a token that has nothing to attend to or is not in the tree.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value; the message says which and what is accepted.

    Examples:
        >>> import jax, jaxattn
        >>> q = jax.random.normal(jax.random.key(0), (2, 10, 4, 8))
        >>> jaxattn.hierarchical_attention(q, q, q, jaxattn.Tree.from_lengths([[3, 4], [3]])).shape
        (2, 10, 4, 8)
        >>> flat = jaxattn.hierarchical_attention(q, q, q, jaxattn.Tree.uniform(10, 10))
        >>> bool(abs(flat - jaxattn.dot_product_attention(q, q, q)).max() < 1e-5)
        True

    Reference: arXiv 2509.15448, "Hierarchical self-attention", section 3 and theorem 3.2; the causal form is ours.
    """
    prepared = prepare_tree_call(query, key, value, tree, key_bias, sibling_bias, scale)
    out = _attend(tree, prepared, is_causal, include_self)
    return (out if jnp.ndim(query) == 4 else out[0]).astype(query.dtype)


def hierarchical_weights(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T K H"],
    tree: Tree,
    *,
    key_bias: Float[Array, "*#B T #N"] | None = None,
    sibling_bias: SiblingBias = None,
    scale: float | None = None,
    is_causal: bool = False,
    include_self: bool = True,
) -> Float[Array, "*B N T T"]:
    """The attention matrices of `hierarchical_attention`: T×T numbers, for inspection.

    Args:
        query: see `hierarchical_attention`, as all other arguments.
        key: (B, T, K, H).
        tree: over T tokens.
        key_bias: (B or 1, T, N or 1).
        sibling_bias: one array or None a level.
        scale: factor on the scores.
        is_causal: which form.
        include_self: whether a token attends to itself.

    Returns:
        (B, N, T, T) float32; rows sum to 1, or are 0 where there is nothing to attend to.

    Raises:
        ValueError: as `hierarchical_attention`.

    Examples:
        >>> import jax, jaxattn
        >>> q = jax.random.normal(jax.random.key(0), (6, 1, 8))
        >>> weights = jaxattn.hierarchical_weights(q, q, jaxattn.Tree.uniform(6, 3))
        >>> weights.shape, bool(abs(weights.sum(-1) - 1).max() < 1e-5)
        ((1, 6, 6), True)
    """
    # The output is linear in the values, so those of the unit vectors are the weights.
    length = jnp.shape(key)[-3]
    unit = jnp.broadcast_to(jnp.eye(length)[:, None, :], (*jnp.shape(key)[:-1], length))
    prepared = prepare_tree_call(query, key, unit, tree, key_bias, sibling_bias, scale)
    weights = jnp.moveaxis(_attend(tree, prepared, is_causal, include_self), 1, 2)
    return weights if jnp.ndim(query) == 4 else weights[0]


def hierarchical_energy(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T K H"],
    tree: Tree,
    *,
    key_bias: Float[Array, "*#B T #N"] | None = None,
    sibling_bias: SiblingBias = None,
    scale: float | None = None,
    include_self: bool = True,
) -> Float[Array, "*B N"]:
    """φ of the root: −(mean over tokens of the log partition function), the least any matrix with these blocks has.

    The summed KL divergence of the rows of `hierarchical_weights` from those of softmax, whose partition functions
    are Z_i, is T φ + Σ_i log Z_i (over the tokens that are not removed).

    Args:
        query: see `hierarchical_attention`, as all other arguments.
        key: (B, T, K, H).
        tree: over T tokens.
        key_bias: (B or 1, T, N or 1).
        sibling_bias: one array or None a level.
        scale: factor on the scores.
        include_self: whether a token attends to itself.

    Returns:
        (B, N) float32, in natural log units; +∞ if some token has nothing to attend to.

    Raises:
        ValueError: as `hierarchical_attention`.

    Examples:
        >>> import jax.numpy as jnp, jaxattn
        >>> q = jnp.zeros((4, 1, 8))  # all scores are 0: every token's partition function is 4
        >>> round(float(jaxattn.hierarchical_energy(q, q, jaxattn.Tree.uniform(4, 2))[0]), 4)
        -1.3863

    Reference: arXiv 2509.15448, theorem 3.2.
    """
    prepared = prepare_tree_call(query, key, key, tree, key_bias, sibling_bias, scale)
    phi = over_sequences(_energy, tree, prepared, include_self)
    phi = phi.reshape(phi.shape[0], -1)
    return phi if jnp.ndim(query) == 4 else phi[0]


def _attend(tree: Tree, prepared: Prepared, is_causal: bool, include_self: bool) -> Array:
    """(B, T, N, V)."""
    if is_causal and not tree.is_ordered:
        raise ValueError(
            "tree must have its leaves in the order of the sequence with is_causal: every node spans consecutive "
            "tokens; got an unordered tree."
        )
    out = over_sequences(attend_causal if is_causal else attend, tree, prepared, include_self)
    out = jnp.moveaxis(out, 2, 1)  # (B, T, K, G, V)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])


def _energy(tree: Tree, leaves: Leaves, biases: Biases, scale: float, include_self: bool) -> Array:
    return bottom_up(tree, leaves, biases, scale, include_self)[1]
