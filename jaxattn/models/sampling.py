"""Draws of the next token from its logits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt32

from jaxattn.core.checks import check_rank, check_shape, unknown_or

Temperature = float | Float[Array, ""] | Float[Array, "B"]
Keys = PRNGKeyArray | Key[Array, "B"] | UInt32[Array, "B _"]


def sample_token(
    logits: Float[Array, "B V"],
    key: Keys,
    temperature: Temperature = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Int[Array, " B"]:
    """One token a row from softmax(logits / temperature) over the likeliest; the most likely one at temperature 0.

    Args:
        logits: of the next token.
        key: random key; or one a row, which makes the draw of a row independent of the others in the batch.
        temperature: above 1 for more variety, below for less; also one a row, (B,). It may be traced.
        top_k: how many of the most likely tokens to draw from; None for all.
        top_p: draw from the fewest tokens whose probabilities add up to at least this, after top_k; None for all. It
            may be traced.

    Returns:
        Token ids.

    Raises:
        ValueError: a negative temperature, top_k below 1, or top_p outside of (0, 1].

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.models import sample_token
        >>> logits = jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
        >>> sample_token(logits, jax.random.key(0), temperature=0.0).tolist()
        [1]
        >>> sorted({int(sample_token(logits, jax.random.key(i), top_p=0.8)[0]) for i in range(20)})
        [1, 2]

    Reference: top_p is nucleus sampling, Holtzman et al. 2020, "The curious case of neural text degeneration".
    """
    check_sampling(temperature, top_k, top_p, logits.shape[0])
    key = typed_keys(key, logits.shape[0])
    temperature = jnp.broadcast_to(jnp.asarray(temperature, logits.dtype), logits.shape[:1])
    scores = logits / jnp.where(temperature > 0, temperature, 1)[:, None]
    scores = _likeliest(scores, top_k, top_p)
    draw = jax.vmap(jax.random.categorical) if key.ndim else jax.random.categorical
    drawn = draw(key, scores)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1))


def _likeliest(scores: Array, top_k: int | None, top_p: Any) -> Array:
    """`scores` with −inf at all but the likeliest tokens."""
    if top_k is None and top_p is None:
        return scores
    ordered = jnp.sort(scores, axis=-1, descending=True)
    kept = jnp.arange(scores.shape[-1])[None] < (scores.shape[-1] if top_k is None else top_k)
    if top_p is not None:
        chances = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf))
        kept &= jnp.cumsum(chances, axis=-1) - chances < top_p
    least = jnp.where(kept, ordered, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(scores < least, -jnp.inf, scores)


def typed_keys(key: Any, batch: int) -> Keys:
    """`key` as a typed key () or keys (B,), whichever style it has."""
    if not hasattr(key, "dtype") or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        try:
            key = jax.random.wrap_key_data(key)
        except TypeError as error:
            raise ValueError(f"key must be a key of jax.random, or one a row, (B,); got {key!r}.") from error
    if key.ndim:
        check_shape("key", key, (batch,), "(B,)")
    return key


def check_sampling(temperature: Any, top_k: int | None, top_p: Any, batch: int) -> None:
    """Raises for options that do not fit or, as far as their values are known at trace time, are out of range."""
    if jnp.shape(temperature) not in ((), (batch,)):
        raise ValueError(
            f"temperature must be one number, or one a row, (B,) = {(batch,)}; got shape {jnp.shape(temperature)}."
        )
    if not unknown_or(lambda x: (jnp.asarray(x) >= 0).all(), temperature):
        raise ValueError(f"temperature must be at least 0; got {temperature}.")
    if top_k is not None and not (isinstance(top_k, int | np.integer) and top_k >= 1):
        raise ValueError(f"top_k must be at least 1, as an integer, or None; got {top_k!r}.")
    check_rank("top_p", 1.0 if top_p is None else top_p, (0,), "()")
    if top_p is not None and not unknown_or(lambda x: 0 < float(x) <= 1, top_p):
        raise ValueError(f"top_p must be above 0 and at most 1, or None; got {top_p}.")
