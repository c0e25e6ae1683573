"""Generation from a language model: prompts of any lengths, until an end token, at once or as a stream."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core.spmd import get_logical_axis_rules
from jaxtyping import Array, Float, Int

from jaxattn.core.arrays import ArrayLike
from jaxattn.core.checks import check_dtype, check_rank, check_shape, unknown_or
from jaxattn.models.language_model import LanguageModel
from jaxattn.models.sampling import Keys, Temperature, check_sampling, sample_token, typed_keys

_SMALLEST_BUCKET = 16


class Generation(NamedTuple):
    """Texts of different lengths: row b is tokens[b, :lengths[b]], its prompt and what follows it.

    After that come end tokens, or 0 where there is none.
    """

    tokens: Int[Array, "B L"]
    lengths: Int[Array, " B"]


def generate(
    model: LanguageModel,
    prompt: Int[ArrayLike, "B P"],
    num_tokens: int,
    *,
    key: Keys,
    prompt_lengths: Int[ArrayLike, " B"] | None = None,
    end_token: int | None = None,
    temperature: Temperature = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Generation:
    """Continues prompts with sampled tokens: p(token) = softmax(logits / temperature) over the likeliest.

    The prompts are one decoding step, then each new token is one; all of it is one compiled program. It is the same
    program for all prompts, numbers of tokens and temperatures whose lengths round up to the same powers of two: the
    state has room for that many tokens. Every sequence of a batch comes out as it would alone.

    Args:
        model: the language model.
        prompt: token ids, at least one a row.
        num_tokens: how many tokens to add at most; prompts and new tokens must fit into the model's context.
        key: a key of `jax.random`; or one a sequence, (B,). The token at position t of a sequence is drawn with
            `fold_in` of its own key and t; a single key is folded with the number of the row first.
        prompt_lengths: (B,) how many tokens of each row are its prompt; what follows them is padding. None for all.
        end_token: the token after which a sequence ends; None for none.
        temperature: 0 takes the most likely token; 1 samples from the model's distribution. Also one a row, (B,).
        top_k: sample among the k most likely tokens only; None for all.
        top_p: sample among the fewest tokens whose probabilities add up to at least this; None for all.

    Returns:
        (tokens (B, P + num_tokens), lengths (B,)), the end token included.

    Raises:
        ValueError: an empty prompt, more tokens than the context holds, or an option out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import BackboneConfig, LanguageModel, generate
        >>> config = BackboneConfig(num_layers=1, num_heads=2, hidden_size=16, max_length=32)
        >>> model, key = LanguageModel(65, config, rngs=nnx.Rngs(0)), jax.random.key(0)
        >>> prompts, lengths = jnp.array([[3, 1, 4, 1], [5, 9, 0, 0]]), jnp.array([4, 2])
        >>> both = generate(model, prompts, 8, key=key, prompt_lengths=lengths, temperature=0.0)
        >>> both.tokens.shape, both.lengths.tolist()
        ((2, 12), [12, 10])
        >>> alone = generate(model, prompts[1:, :2], 8, key=key, temperature=0.0)
        >>> bool((alone.tokens[0] == both.tokens[1, :10]).all())
        True
    """
    prompt = jnp.asarray(prompt)
    request = _request(model, prompt, num_tokens, key, prompt_lengths, end_token, temperature, top_k, top_p)
    tokens, lengths = _generate(*request, num_tokens)
    width = prompt.shape[1] + num_tokens
    fill = 0 if end_token is None else end_token
    missing = max(width - tokens.shape[1], 0)
    tokens = jnp.pad(tokens, ((0, 0), (0, missing)), constant_values=fill)[:, :width]
    return Generation(tokens.astype(prompt.dtype), lengths)


def stream(
    model: LanguageModel,
    prompt: Int[ArrayLike, "B P"],
    num_tokens: int,
    *,
    key: Keys,
    prompt_lengths: Int[ArrayLike, " B"] | None = None,
    end_token: int | None = None,
    temperature: Temperature = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Iterator[Int[np.ndarray, " B"]]:
    """The new tokens of `generate` one by one, as soon as they are known.

    Args:
        model: the language model.
        prompt: token ids, at least one a row.
        num_tokens: how many tokens to add at most.
        key: as in `generate`, and so are all other options.
        prompt_lengths: (B,) how many tokens of each row are its prompt.
        end_token: the token after which a sequence ends; the stream ends when all have.
        temperature: 0 takes the most likely token.
        top_k: sample among the k most likely tokens only.
        top_p: sample among the fewest tokens whose probabilities add up to at least this.

    Returns:
        An iterator of arrays (B,), a token for every sequence; the end token for those that have ended.

    Raises:
        ValueError: as `generate`, before the first token.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import BackboneConfig, LanguageModel, generate, stream
        >>> config = BackboneConfig(num_layers=1, num_heads=2, hidden_size=16, max_length=32)
        >>> model, key = LanguageModel(65, config, rngs=nnx.Rngs(0)), jax.random.key(0)
        >>> prompt = jnp.array([[3, 1, 4]])
        >>> streamed = [int(token[0]) for token in stream(model, prompt, 5, key=key)]
        >>> streamed == generate(model, prompt, 5, key=key).tokens[0, 3:].tolist()
        True
    """
    prompt = jnp.asarray(prompt)
    request = _request(model, prompt, num_tokens, key, prompt_lengths, end_token, temperature, top_k, top_p)

    def tokens() -> Iterator[np.ndarray]:
        static, variables, (prompt, lengths), options = request
        state, progress = _start(static, variables, prompt, lengths, options)
        for left in reversed(range(num_tokens)):
            yield np.asarray(progress.token)
            if not left or (end_token is not None and bool(progress.ended.all())):
                return
            state, progress = _advance(static, variables, state, progress, options)

    return tokens()


class _Static(NamedTuple):
    """What a compiled program is for, besides the shapes of its arguments."""

    graph: Any
    max_length: int
    top_k: int | None
    rules: str  # that cut it among devices


class _Options(NamedTuple):
    """Traced options; end_token and top_p may be None."""

    keys: Array
    temperature: Array
    top_p: Any
    end_token: Any


class _Progress(NamedTuple):
    """The last token of every sequence, how many it has with that one, and whether it has ended."""

    token: Array
    length: Array
    ended: Array


def _request(
    model: LanguageModel,
    prompt: Array,
    num_tokens: int,
    key: Any,
    prompt_lengths: Any,
    end_token: int | None,
    temperature: Any,
    top_k: int | None,
    top_p: Any,
) -> tuple[_Static, Any, tuple[Array, Array], _Options]:
    """Checked arguments, the prompts padded to their bucket."""
    vocabulary = model.embedding.shape[0]
    check_dtype("prompt", prompt, jnp.integer, "integer token ids")
    check_rank("prompt", prompt, (2,), "(B, P)")
    batch, longest = prompt.shape
    if not unknown_or(lambda ids: ((ids >= 0) & (ids < vocabulary)).all(), prompt):
        seen = np.asarray(prompt)
        raise ValueError(
            f"prompt must hold token ids from 0 to {vocabulary - 1}; got {seen.min()} to {seen.max()}."
        )
    if longest < 1:
        raise ValueError("prompt must hold at least one token a row; got none.")
    if not (isinstance(num_tokens, int | np.integer) and num_tokens >= 1):
        raise ValueError(f"num_tokens must be at least 1, as an integer; got {num_tokens!r}.")
    if end_token is not None and not (
        isinstance(end_token, int | np.integer) and 0 <= end_token < vocabulary
    ):
        raise ValueError(f"end_token must be None or a token id below {vocabulary}; got {end_token!r}.")
    check_sampling(temperature, top_k, top_p, batch)
    if prompt_lengths is None:
        prompt_lengths = np.full(batch, longest)
    else:
        check_dtype("prompt_lengths", prompt_lengths, jnp.integer, "integer")
        check_shape("prompt_lengths", prompt_lengths, (batch,), "(B,)")
        if isinstance(prompt_lengths, jax.core.Tracer):
            raise ValueError("prompt_lengths decide which program is compiled; got a traced array.")
        prompt_lengths = np.asarray(prompt_lengths)
        if prompt_lengths.min() < 1 or prompt_lengths.max() > longest:
            raise ValueError(f"prompt_lengths must lie in 1..{longest}; got {prompt_lengths.tolist()}.")
        longest = int(prompt_lengths.max())
    if longest + num_tokens > model.max_length:
        raise ValueError(
            f"num_tokens must be at most {model.max_length - longest}: the context holds {model.max_length} tokens "
            f"and the prompt has {longest}; got {num_tokens}."
        )
    width, room = (min(_bucket(size), model.max_length) for size in (longest, longest + num_tokens))
    prompt = jnp.pad(prompt[:, :longest], ((0, 0), (0, width - longest))).astype(jnp.int32)
    options = _Options(
        _row_keys(key, batch),
        jnp.asarray(temperature, jnp.float32),
        None if top_p is None else jnp.asarray(top_p, jnp.float32),
        None if end_token is None else jnp.asarray(end_token, jnp.int32),
    )
    graph, variables = nnx.split(model)
    static = _Static(graph, room, top_k, repr(get_logical_axis_rules()))
    return static, variables, (prompt, jnp.asarray(prompt_lengths, jnp.int32)), options


def _bucket(size: int) -> int:
    """The next power of two, so that few programs are compiled."""
    return max(1 << (int(size) - 1).bit_length(), _SMALLEST_BUCKET)


def _row_keys(key: Array, batch: int) -> Array:
    """One key a sequence, whatever the size of the batch."""
    key = typed_keys(key, batch)
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def _next(static: _Static, options: _Options, logits: Array, length: Array, ended: Array) -> _Progress:
    """The token after `length` tokens; sequences that have ended stay as they are."""
    keys = jax.vmap(jax.random.fold_in)(options.keys, length)
    token = sample_token(logits, keys, options.temperature, static.top_k, options.top_p).astype(jnp.int32)
    if options.end_token is None:
        return _Progress(token, length + 1, ended)
    token = jnp.where(ended, options.end_token, token)
    return _Progress(token, jnp.where(ended, length, length + 1), ended | (token == options.end_token))


@partial(jax.jit, static_argnums=0)
def _start(
    static: _Static, variables: Any, prompt: Array, lengths: Array, options: _Options
) -> tuple[Any, _Progress]:
    """The state after the prompts, and the first new token."""
    model = nnx.merge(static.graph, variables)
    mask = jnp.arange(prompt.shape[1]) < lengths[:, None]
    state, logits = model.prefill(prompt, token_mask=mask, max_length=static.max_length)
    return state, _next(static, options, logits, lengths, jnp.zeros(lengths.shape, bool))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(
    static: _Static, variables: Any, state: Any, progress: _Progress, options: _Options
) -> tuple[Any, _Progress]:
    """One token more for every sequence that has not ended."""
    mask = None if options.end_token is None else ~progress.ended[:, None]
    state, logits = nnx.merge(static.graph, variables).step(state, progress.token[:, None], token_mask=mask)
    return state, _next(static, options, logits[:, -1], progress.length, progress.ended)


@partial(jax.jit, static_argnums=0)
def _generate(
    static: _Static, variables: Any, prompts: tuple[Array, Array], options: _Options, num_tokens: Array
) -> tuple[Array, Array]:
    """(B, room) texts and their lengths."""
    prompt, lengths = prompts
    fill = 0 if options.end_token is None else options.end_token
    room = jnp.arange(static.max_length)
    text = jnp.pad(prompt, ((0, 0), (0, static.max_length - prompt.shape[1])))
    text = jnp.where(room < lengths[:, None], text, fill)

    def write(text: Array, progress: _Progress) -> Array:
        return jnp.where(room == progress.length[:, None] - 1, progress.token[:, None], text)

    def is_on(carry: Any) -> Array:
        count, _, progress, _ = carry
        return (count < num_tokens) & ~progress.ended.all()

    def more(carry: Any) -> Any:
        count, state, progress, text = carry
        state, progress = _advance(static, variables, state, progress, options)
        return count + 1, state, progress, write(text, progress)

    state, progress = _start(static, variables, prompt, lengths, options)
    _, _, progress, text = jax.lax.while_loop(is_on, more, (1, state, progress, write(text, progress)))
    return text, progress.length
