"""Hierarchical self-attention: the attention over a tree that is closest to softmax."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn.core.call import Call, accumulation_dtype, check_call
from jaxattn.core.checks import check_flag
from jaxattn.core.explicit import automatic_axes, but_width, query_axes
from jaxattn.core.pallas.choice import check_implementation, takes_pallas
from jaxattn.core.pallas.parts import on_parts, own_part
from jaxattn.core.platform import by_platform
from jaxattn.tree.arguments import (
    Plan,
    SiblingBias,
    attend_planned,
    check_whole,
    choose_plan,
    over_batch,
)
from jaxattn.tree.bidirectional import attend, energy
from jaxattn.tree.causal import attend_causal
from jaxattn.tree.pallas.limits import pallas_cannot
from jaxattn.tree.pallas.tiling import Fused, cut_tiles
from jaxattn.tree.pooling import Biases
from jaxattn.tree.tree import Tree


@automatic_axes(but_width)
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
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*B T N V"]:
    r"""Self-attention over a tree whose leaves are the tokens, in O(M b²) time for M nodes with up to b children.

    Bidirectional: with means ρ over the leaves of a node, n(D) leaves and S(C→D) = scale ρ_q(C)·ρ_k(D) + bias(C, D),

    $$ Z(C) = e^{-\varphi(C)} + \sum_{D\,\in\,\mathrm{siblings}(C)} n(D)\, e^{S(C \to D)}, \qquad
       \varphi(A) = -\sum_{C\,\in\,\mathrm{children}(A)} \frac{n(C)}{n(A)} \log Z(C). $$

    A node C spends exp(−φ(C))/Z(C) of its mass below itself and n(D) exp S(C→D)/Z(C) on every sibling D, evenly over
    D's leaves; φ of a leaf is −S(i→i), or +∞ without `include_self`. Among all attention matrices that are constant
    on the blocks (leaves of C) × (leaves of D) this has the smallest total KL divergence from softmax; if all tokens
    are children of the root, it is softmax.

    Causal: token i scores with its own query the mean key of each earlier sibling D of each of its ancestors,

    $$ \mathrm{logit}(i, D) = scale\; q_i \cdot \rho_k(D) + bias + \log n(D), $$

    and itself with include_self, in one softmax; D contributes its mean value. It is the closest to causal softmax
    among the matrices whose row i is constant on each such D. (Masking later siblings in the bidirectional recursion
    would not be causal, because ρ_q and φ of i's ancestors depend on later tokens.) O(T Σ b_l) time for up to b_l
    children at level l.

    A key bias c_j gives leaf j the weight e^(c_j) as a key: ρ_k and ρ_v are means with these weights and n(D) is
    their sum, while ρ_q and n(C)/n(A) still count tokens. A token with key bias −inf enters no mean and no count.

    Args:
        query: (B, T, N, H), or (T, N, H) with every other array lacking the batch axis too.
        key: (B, T, K, H); K divides N (grouped queries).
        value: (B, T, K, V).
        tree: over T tokens; one for all sequences, or `Tree.stack` of one for each.
        key_bias: (B or 1, T, N or 1), natural log units, added to every score of key j; −inf removes the token.
        sibling_bias: for each level from the leaves up, an array (N or 1, b_l, b_l) added to the score of child c on
            child d of one node, or None; at level 0, entry (c, c) is a leaf's score on itself.
        scale: factor on the scores, 1/sqrt(H) when None.
        is_causal: token i attends only to itself and earlier tokens; needs `tree.is_ordered`.
        include_self: whether a token attends to itself, as softmax does; False is the published form.
        implementation: "xla" runs everywhere. "pallas" is fused kernels for TPUs, whose scores stay on the chip; they
            take trees of `Tree.uniform` whose families have powers of two, up to 1,024 tokens at least, and neither
            sibling_bias nor float64. Second derivatives are then those of "xla". No compiler can partition the
            kernels: by name in programs of several devices, wrap the call in `jax.shard_map` with check_vma=False.
            None takes them where a TPU is known to do all, or all of its part, and they can, else "xla".
        axis_name: an axis of a mesh over which `jax.shard_map` cuts the tokens, all devices having as many, which are
            whole subtrees of a uniform tree. Devices gather what is above the subtrees, and no tokens.

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
    call = check_call(query, key, value, key_bias=key_bias, scale=scale, is_causal=is_causal)
    return _attend(call, tree, sibling_bias, include_self, implementation, axis_name).astype(query.dtype)


@automatic_axes(query_axes("N", "T", None))
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
    """The attention matrices of `hierarchical_attention`, T×T numbers a head, for inspection.

    Args:
        query: see `hierarchical_attention`, also for all other arguments.
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
    # The output is linear in the values, so the outputs of unit vectors are the weights.
    length = jnp.shape(key)[-3]
    unit = jnp.broadcast_to(jnp.eye(length)[:, None, :], (*jnp.shape(key)[:-1], length))
    call = check_call(query, key, unit, key_bias=key_bias, scale=scale, is_causal=is_causal)
    return jnp.swapaxes(_attend(call, tree, sibling_bias, include_self), -2, -3)


@automatic_axes(query_axes("N"))
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
    """φ of the root: −(mean over tokens of the log partition function), the least of any matrix with these blocks.

    The total KL divergence of the rows of `hierarchical_weights` from those of softmax, with partition functions Z_i,
    is T φ + Σ_i log Z_i, over the tokens that are not removed.

    Args:
        query: see `hierarchical_attention`, also for all other arguments.
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
    call = check_call(query, key, key, key_bias=key_bias, scale=scale)
    call, biases = check_whole(call, tree, sibling_bias)
    if call.is_empty:
        return jnp.zeros((0, call.query.shape[2] * call.query.shape[3]), accumulation_dtype(call.query))
    phi = over_batch(energy, tree, call, biases, include_self)
    phi = phi.reshape(phi.shape[0], -1)
    return phi if call.batched else phi[0]


def _attend(
    call: Call,
    tree: Tree,
    sibling_bias: SiblingBias,
    include_self: bool,
    implementation: str | None = "xla",
    axis_name: str | None = None,
) -> Array:
    """(B, T, N, V), without the batch axis if the caller's arrays had none."""
    call, biases = check_whole(call, tree, sibling_bias, axis_name)
    if call.is_empty:
        return call.zeros(call.query.dtype)
    include_self, reason = check_flag("include_self", include_self), pallas_cannot(tree, call, biases)
    if axis_name is not None:
        reason = "takes no axis_name; use implementation='xla'."
    check_implementation(implementation, {"pallas": reason})

    def choose(platform: str) -> Plan | Fused:
        if takes_pallas(call, reason, implementation, platform):
            return Fused(cut_tiles(tree.branching), include_self, own_part(call))
        function = attend_causal if call.is_causal else attend
        return choose_plan(function, tree, include_self, platform, axis_name)

    out = by_platform(choose, attend_chosen, tree, call, biases)
    return call.merge_heads(jnp.moveaxis(out, 2, 1))


def attend_chosen(how: Plan | Fused, tree: Tree, call: Call, biases: Biases) -> Array:
    """(B, K, T, G, V) in XLA or in fused kernels."""
    if isinstance(how, Plan):
        return attend_planned(how, tree, call, biases)
    from jaxattn.tree.pallas.attention import attend_fused

    return jnp.moveaxis(on_parts(how.parts, partial(attend_fused, how), call), 1, 2)
