"""The forgetting gate: a learned decay between tokens, as a key bias of causal attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn.core.checks import check_dtype, check_rank, check_shape
from jaxattn.core.explicit import automatic_axes, same


@automatic_axes(same)
def forget_key_bias(
    logits: Float[Array, "*B S N"], *, mask: Bool[Array, "*B S"] | None = None
) -> Float[Array, "*B S N"]:
    """Weights that every later token multiplies by its gate f_l = sigmoid(logit_l), as a key bias.

    The weight of key j for query i is multiplied by Π_{j < l <= i} f_l = exp(c_i − c_j), c_i = Σ_{l <= i} log f_l.
    The factor exp(c_i) is the same for all keys of a query and cancels in the normalisation, which leaves the key
    bias −c_j: use it with `is_causal=True` only. So one gate serves softmax, linear attention, random features and
    causal trees (which pool recent leaves more).

    The bias is float32 and grows with the sum of all decays: its rounding changes weights by 3e-5 relative after 500
    nats and by 2.5e-4 after 4,096.

    Args:
        logits: (B, S, N) or (S, N) gate logits, any float dtype; +inf never forgets.
        mask: True at real tokens, (B, S); the others decay nothing, whatever they hold.

    Returns:
        The key bias −c_j, float32, in the shape of `logits`.

    Raises:
        ValueError: a wrong shape or dtype.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxattn
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
        >>> never = jaxattn.forget_key_bias(jnp.full((1, 6, 2), jnp.inf))
        >>> float(abs(never).max())
        0.0
        >>> soon = jaxattn.forget_key_bias(jnp.full((1, 6, 2), -50.0))  # all that is left is the token itself
        >>> out = jaxattn.dot_product_attention(q, k, v, key_bias=soon, is_causal=True)
        >>> bool(jnp.allclose(out, v, atol=1e-6))
        True

    Reference: Lin et al. 2025, "Forgetting Transformer", arXiv 2503.02130, equations 4 to 6.
    """
    return -jnp.cumsum(_log_gates(logits, mask), axis=-2)


def forget_key_bias_init_state(batch: int, num_heads: int) -> Float[Array, "B N"]:
    """The sum of no decays, for `forget_key_bias_step`.

    Args:
        batch: sequences decoded together, B.
        num_heads: query heads N.

    Returns:
        (B, N), float32.

    Examples:
        >>> forget_key_bias_init_state(2, 4).shape
        (2, 4)
    """
    return jnp.zeros((batch, num_heads), jnp.float32)


@automatic_axes(same, same)
def forget_key_bias_step(
    state: Float[Array, "B N"], logits: Float[Array, "B T N"], *, mask: Bool[Array, "B T"] | None = None
) -> tuple[Float[Array, "B N"], Float[Array, "B T N"]]:
    """The key biases of T new tokens; those of earlier ones do not change.

    Args:
        state: from `forget_key_bias_init_state` or an earlier step.
        logits: (B, T, N) gate logits of the new tokens.
        mask: True at real tokens, (B, T).

    Returns:
        (new state, key bias (B, T, N), float32).

    Raises:
        ValueError: a shape does not fit the state.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxattn
        >>> logits = jax.random.normal(jax.random.key(0), (2, 5, 4))
        >>> state, first = forget_key_bias_step(forget_key_bias_init_state(2, 4), logits[:, :3])
        >>> state, rest = forget_key_bias_step(state, logits[:, 3:])
        >>> whole = forget_key_bias(logits)
        >>> bool(jnp.allclose(jnp.concatenate([first, rest], axis=1), whole, atol=1e-6))
        True
    """
    check_rank("logits", logits, (3,), "(B, T, N)")
    check_shape("state", state, (logits.shape[0], logits.shape[2]), "logits' (B, N)")
    key_bias = state[:, None] + forget_key_bias(logits, mask=mask)
    return key_bias[:, -1], key_bias


def _log_gates(logits: Array, mask: Array | None) -> Array:
    check_rank("logits", logits, (2, 3), "(B, S, N) or (S, N)")
    check_dtype("logits", logits, jnp.floating, "floating point")
    if mask is not None:
        check_dtype("mask", mask, jnp.bool_, "boolean, True at real tokens")
        check_shape("mask", mask, logits.shape[:-1], "(B, S)")
        logits = jnp.where(mask[..., None], logits, jnp.inf)
    return jax.nn.log_sigmoid(logits.astype(jnp.float32))
