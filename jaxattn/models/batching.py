"""Models on many texts: similar lengths together, in few shapes, each of which is compiled once."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core.spmd import get_logical_axis_rules
from jaxtyping import Array

from jaxattn.encoders.text_encoder import TextEncoder
from jaxattn.encoders.tokenizer import Tokens, needed, pad

# Texts that are tokenised at a time.
CHUNK = 4096


def tokenized(
    encoder: TextEncoder, texts: Sequence[str], second: Sequence[str] | None = None, *, max_length: int
) -> list[Tokens]:
    """The tokens of every text, or pair of texts, cut at the limit."""
    tokenizer, found = needed(encoder.tokenizer), []
    for start in range(0, len(texts), CHUNK):
        chunk = slice(start, start + CHUNK)
        pair = None if second is None else second[chunk]
        found += tokenizer.rows(texts[chunk], pair, encoder.config, max_length=max_length, truncation=True)
    return found


def in_batches(
    model: Any,
    rows: Sequence[Tokens],
    limit: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    token_types: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Outputs of a model, the longest texts first.

    Args:
        model: called as `model(input_ids, attention_mask, deterministic=True)`, with an encoder as .encoder.
        rows: from `tokenized`.
        limit: tokens of a text at most.
        batch_size: texts at a time.
        progress: called after each batch with the number of texts done and of all texts.
        token_types: whether the call gets `token_type_ids` too.

    Yields:
        Numbers of texts, and their outputs in float32, whose axis of tokens, if there is one, is padded.

    Raises:
        ValueError: batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
    order = np.argsort([-len(row.ids) for row in rows], kind="stable")
    filler = model.encoder.config.pad_token_id
    graph, state = nnx.split(model)
    static = graph, repr(get_logical_axis_rules())  # a program is for rules that cut it among devices

    def run(chosen: np.ndarray) -> tuple[np.ndarray, Array]:
        height, width = bucket(len(chosen), 1, batch_size), bucket(len(rows[chosen[0]].ids), 8, limit)
        filled = [rows[row] for row in np.pad(chosen, (0, height - len(chosen)), mode="edge")]
        types = pad([row.types for row in filled], width, 0)[0] if token_types else None
        return chosen, _apply(static, state, *pad([row.ids for row in filled], width, filler), types)

    done, batches = 0, (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    for chosen, found in _one_ahead(map(run, batches)):
        yield chosen, np.asarray(found)[: len(chosen)]
        done += len(chosen)
        if progress is not None:
            progress(done, len(rows))


@functools.partial(jax.jit, static_argnums=0)
def _apply(static: tuple[Any, str], state: Any, input_ids: Array, mask: Array, types: Array | None) -> Array:
    more = {} if types is None else {"token_type_ids": types}
    return nnx.merge(static[0], state)(input_ids, mask, deterministic=True, **more).astype(jnp.float32)


def bucket(size: int, least: int, most: int) -> int:
    """The size that `size` is padded to: a power of two, or the middle between two, at most `most`.

    Examples:
        >>> [bucket(size, 8, 100) for size in (3, 9, 13, 25, 33, 49, 65, 97)]
        [8, 12, 16, 32, 48, 64, 96, 100]
    """
    power = 1 << (size - 1).bit_length()
    return min(max(least, 3 * power // 4 if 4 * size <= 3 * power else power), most)


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each when the next one has been asked for: the device computes while results are copied."""
    before = next(items, None)
    for item in items:
        yield before
        before = item
    if before is not None:
        yield before
