"""KL divergence of a mechanism's attention matrices from those of softmax, at the same queries and keys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn import hierarchical_weights, padding_key_bias
from jaxattn.nn import MechanismModule
from jaxattn.random_features.mechanism import RandomFeaturesModule
from jaxattn.softmax.mechanism import SoftmaxModule
from jaxattn.tree.mechanism import HierarchicalModule
from jaxattn_train.studies.zero_shot.layers import compiled


def has_distribution(mechanism: MechanismModule) -> bool:
    """Whether its weights are never negative; those of random features of either sign may be."""
    if not isinstance(mechanism, RandomFeaturesModule):
        return True
    feature_map = mechanism.feature_map
    return feature_map.component.positive and feature_map.weights.signs is None


def attention_weights(
    mechanism: MechanismModule,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B N T T"]:
    """The attention matrices of a mechanism.

    Args:
        mechanism: softmax, a uniform tree or random features.
        query: as it enters the attention.
        key: likewise.
        mask: True at real tokens.

    Returns:
        Rows that sum to 1 where the token is real.

    Raises:
        TypeError: another mechanism.
    """
    if isinstance(mechanism, SoftmaxModule):
        return jnp.exp(log_softmax_weights(query, key, mask))
    if isinstance(mechanism, HierarchicalModule) and not mechanism.config.needs_tree:
        return hierarchical_weights(
            query,
            key,
            mechanism.config.tree_over(query.shape[1]),
            key_bias=padding_key_bias(mask),
            include_self=mechanism.config.include_self,
        )
    if not isinstance(mechanism, RandomFeaturesModule):
        raise TypeError(
            f"mechanism must be softmax, a uniform tree or random features; got {type(mechanism).__name__}."
        )
    (phi_q, _), (phi_k, log_k) = mechanism.feature_map.query(query), mechanism.feature_map.key(key)
    # The scale of a query cancels in its row, and so does one number for all keys.
    log_k = jnp.where(mask[..., None], log_k, -jnp.inf)
    scale_k = jnp.exp(log_k - log_k.max(axis=1, keepdims=True))
    kernel = jnp.einsum("BTNM,BSNM->BNTS", phi_q, phi_k * scale_k[..., None])
    total = kernel.sum(axis=-1, keepdims=True)
    return kernel / jnp.where(total == 0, 1, total)


def log_softmax_weights(
    query: Float[Array, "B T N H"], key: Float[Array, "B T N H"], mask: Bool[Array, "B T"]
) -> Float[Array, "B N T T"]:
    """log softmax(q·k / sqrt(H)) over the real keys."""
    scores = jnp.einsum("BTNH,BSNH->BNTS", query, key) / query.shape[-1] ** 0.5
    return jax.nn.log_softmax(jnp.where(mask[:, None, None, :], scores, -jnp.inf))


def divergence(
    weights: Float[Array, "B N T T"],
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    mask: Bool[Array, "B T"],
) -> Float[Array, ""]:
    """Σ over real rows and heads of KL(weights ‖ softmax) = Σ_j w_ij (log w_ij − log p_ij), in nats.

    In this direction, attention over a tree is optimal among matrices with its blocks. The other direction is
    infinite as soon as a weight is 0, such as that of a token on itself in the published form.
    """
    target = log_softmax_weights(query, key, mask)
    positive = weights > 0
    terms = weights * (jnp.log(jnp.where(positive, weights, 1)) - jnp.where(positive, target, 0))
    return jnp.where(mask[:, None, :], terms.sum(axis=-1), 0).sum()


@compiled
def layer_divergence(mechanism: MechanismModule, query: Array, key: Array, mask: Array) -> Array:
    """`divergence` of a mechanism's attention."""
    return divergence(attention_weights(mechanism, query, key, mask), query, key, mask)
