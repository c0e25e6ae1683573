"""Sampling from a language model, token by token."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxattn.models.language_model import LanguageModel


def generate(
    model: LanguageModel,
    prompt: Int[Array, "B P"],
    num_tokens: int,
    *,
    key: PRNGKeyArray,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int[Array, "B _"]:
    """Continues prompts with sampled tokens: p(token) = softmax(logits / temperature) over the top k.

    The whole prompt is one decoding step, then each new token is one; all of it is one compiled loop.

    Args:
        model: the language model.
        prompt: token ids, at least one a row.
        num_tokens: how many tokens to add; prompt and new tokens must fit into the model's context.
        key: a key of `jax.random`.
        temperature: 0 takes the most likely token; 1 samples from the model's distribution.
        top_k: sample among the k most likely tokens only; None for all.

    Returns:
        The prompts followed by the new tokens.

    Raises:
        ValueError: an empty prompt, more tokens than the context holds, a negative temperature, a top_k below 1.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import BackboneConfig, LanguageModel, generate
        >>> config = BackboneConfig(num_layers=1, num_heads=2, hidden_size=16, max_length=32)
        >>> model = LanguageModel(65, config, rngs=nnx.Rngs(0))
        >>> generate(model, jnp.zeros((1, 4), int), 8, key=jax.random.key(0)).shape
        (1, 12)
    """
    length = prompt.shape[1]
    if length < 1:
        raise ValueError("prompt must hold at least one token a row; got none.")
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1; got {num_tokens}.")
    if length + num_tokens > model.max_length:
        raise ValueError(
            f"num_tokens must be at most {model.max_length - length}: the context holds {model.max_length} tokens "
            f"and the prompt has {length}; got {num_tokens}."
        )
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0; got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 or None; got {top_k}.")
    return _generate(model, prompt, num_tokens, key, float(temperature), top_k)


def _sample_loop(
    model: LanguageModel, prompt: Array, num_tokens: int, key: Array, temperature: float, top_k: int | None
) -> Array:
    state = model.init_state(prompt.shape[0], prompt.shape[1] + num_tokens)
    state, logits = model.step(state, prompt)
    keys = jax.random.split(key, num_tokens)
    first = sample_token(logits[:, -1], keys[0], temperature, top_k)

    def body(carry, key):
        state, token = carry
        state, logits = model.step(state, token[:, None])
        token = sample_token(logits[:, -1], key, temperature, top_k)
        return (state, token), token

    _, later = jax.lax.scan(body, (state, first), keys[1:])
    return jnp.concatenate([prompt, first[:, None], later.T.astype(prompt.dtype)], axis=1)


_generate: Callable[..., Array] = nnx.jit(_sample_loop, static_argnums=(2, 4, 5))


def sample_token(
    logits: Float[Array, "B V"], key: PRNGKeyArray, temperature: float = 1.0, top_k: int | None = None
) -> Int[Array, " B"]:
    """One token a row from softmax(logits / temperature) over the top k; the most likely one at temperature 0.

    Args:
        logits: of the next token.
        key: random key.
        temperature: above 1 for more variety, below for less.
        top_k: how many of the most likely tokens to draw from; None for all.

    Returns:
        Token ids.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.models import sample_token
        >>> sample_token(jnp.array([[0.0, 3.0, 1.0]]), jax.random.key(0), temperature=0.0).tolist()
        [1]
    """
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return jax.random.categorical(key, logits)
