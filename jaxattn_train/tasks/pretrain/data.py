"""Windows of token ids with the word of every token, and random masks over them."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxattn_train.data.lines import read_texts
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.charlm.windows import SeedStreams
from jaxattn_train.tasks.pretrain.config import PretrainData

HELD_OUT = 20
"""Without a validation file, one window in so many."""


class Windows(NamedTuple):
    """Token ids and the word that each is a part of, −1 for special ones: int32 (windows, 2, T)."""

    train: np.ndarray
    validation: np.ndarray
    sha256: str
    """Of both."""


class Masked(NamedTuple):
    """What a model reads and what it is asked for."""

    inputs: Int[Array, "B T"]
    places: Int[Array, "B K"]
    """Of the tokens that are predicted."""
    targets: Int[Array, "B K"]
    weights: Float[Array, "B K"]
    """0 for places that do not count, else 1."""


def load_windows(data: PretrainData, encoder: Any) -> Windows:
    """The windows of the files.

    Raises:
        UserError: a file that is not usable, too little text, or windows beyond the encoder's limit.
    """
    if data.max_length > encoder.config.max_length:
        raise UserError(
            f"--max-length must be at most {encoder.config.max_length}, the encoder's limit; got {data.max_length}."
        )
    train = make_windows(_texts(data.train_file, data.text_column), encoder, data)
    if data.validation_file is not None:
        validation = make_windows(_texts(data.validation_file, data.text_column), encoder, data)
    else:
        held = np.arange(len(train)) % HELD_OUT == HELD_OUT - 1
        train, validation = train[~held], train[held]
    for name, part in (("--train-file", train), ("--validation-file", validation)):
        if not len(part):
            raise UserError(
                f"{name} must hold more text: windows of {data.max_length} tokens, of which one in {HELD_OUT} is "
                "held out without --validation-file; got too little for one. A smaller --max-length may help."
            )
    digest = hashlib.sha256(train.tobytes() + b"|" + validation.tobytes()).hexdigest()
    return Windows(train, validation, digest)


def _texts(file: str | None, column: str | None) -> list[str]:
    return [line.text for line in read_texts(file, column) if line.text.strip()]


def make_windows(texts: Sequence[str], encoder: Any, data: PretrainData) -> np.ndarray:
    """All texts one after another, cut into windows (windows, 2, T) that begin and end as a single text does."""
    # Texts of any length: windows are cut afterwards.
    config = dataclasses.replace(encoder.config, max_length=2**30)
    rows = []
    for start in range(0, len(texts), 1024):
        part = texts[start : start + 1024]
        rows += encoder.tokenizer.rows(part, None, config, max_length=None, truncation=False)
    rows = [row for row in rows if (row.words >= 0).any()]
    if not rows:
        return np.zeros((0, 2, data.max_length), np.int32)
    first = np.flatnonzero(rows[0].words >= 0)
    before, after = rows[0].ids[: first[0]], rows[0].ids[first[-1] + 1 :]
    ids: list[np.ndarray] = []
    words: list[np.ndarray] = []
    seen = 0
    for row in rows:
        body = row.words >= 0
        numbers = row.words[body] if data.whole_words else np.arange(body.sum())
        ids += [row.ids[body], after[:1]]
        words += [numbers + seen, np.full(len(after[:1]), -1)]
        seen += int(numbers.max()) + 1
    stream = np.stack([np.concatenate(ids), np.concatenate(words)]).astype(np.int32)
    inside = data.max_length - len(before) - len(after)
    count = stream.shape[1] // inside
    middle = stream[:, : count * inside].reshape(2, count, inside).swapaxes(0, 1)

    def edge(tokens: np.ndarray) -> np.ndarray:
        both = np.stack([tokens, np.full(len(tokens), -1)]).astype(np.int32)
        return np.broadcast_to(both, (count, *both.shape))

    return np.concatenate([edge(before), middle, edge(after)], axis=-1)


def mask_tokens(
    windows: Int[Array, "B 2 T"], key: PRNGKeyArray, *, rate: float, mask_id: int, vocab_size: int
) -> Masked:
    """Random tokens to predict, round(rate·T) a window: whole words, the last of which does not count if it is cut.

    Of the tokens, 80 % are replaced by [MASK], 10 % by a random one, 10 % stay (BERT, arXiv 1810.04805).
    """
    ids, words = windows[:, 0], windows[:, 1]
    rows, length = ids.shape
    pick, fate, other = jax.random.split(key, 3)
    # Every token has the draw of its word's first one.
    starts = jnp.pad(words[:, 1:] != words[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    first = jax.lax.cummax(jnp.where(starts, jnp.arange(length), 0), axis=1)
    draws = jnp.take_along_axis(jax.random.uniform(pick, ids.shape), first, axis=1)
    draws = jnp.where(words < 0, 2.0, draws)
    lowest, places = jax.lax.top_k(-draws, max(1, round(rate * length)))
    worst = lowest.min(axis=1, keepdims=True)
    cut = (lowest == worst).sum(axis=1) < (-draws == worst).sum(axis=1)
    counts = (lowest > -2.0) & ~(cut[:, None] & (lowest == worst))
    targets = jnp.take_along_axis(ids, places, axis=1)
    chance = jax.random.uniform(fate, places.shape)
    random = jax.random.randint(other, places.shape, 0, vocab_size, ids.dtype)
    new = jnp.where(chance < 0.8, mask_id, jnp.where(chance < 0.9, random, targets))
    inputs = ids.at[jnp.arange(rows)[:, None], places].set(jnp.where(counts, new, targets))
    return Masked(inputs, places, targets, counts.astype(jnp.float32))


class WindowStreams(SeedStreams):
    """Batches (seeds, rows, 2, T) of windows, each of which comes once an epoch, in an order of each seed's own."""

    def __init__(self, windows: np.ndarray, *, seeds: Sequence[int], batch_size: int, rows: slice):
        def batches(seed: int) -> grain.DatasetIterator:
            order = grain.MapDataset.range(len(windows)).seed(seed).shuffle().repeat(reseed_each_epoch=True)
            chosen = order.batch(batch_size).map(lambda numbers: windows[numbers[rows]])
            return iter(chosen.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))

        self._streams = [batches(seed) for seed in seeds]
