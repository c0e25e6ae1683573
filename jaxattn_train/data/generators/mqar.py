"""Multi-query associative recall (MQAR), generated: keys and their values, and questions for the values.

A row starts with pairs of a key and its value. Then each key comes once more, at a random place of the rest, and the
answer there is its value; id 0 fills the places between. That is the task as published, but for the places, which are
uniform here, and the filler, which is random tokens there.

In a row whose answers are shown the questions fill the rest of the row, in one random order after the other, and each
is followed by its answer: far more to learn from in the same number of tokens.

Reference: Arora et al. 2023, "Zoology: Measuring and improving recall in efficient language models",
arXiv 2312.04927.
"""

from collections.abc import Sequence

import numpy as np

from jaxattn_train.data.generators.counter_random import Stream

VERSION = 1  # of the generator: raise it with any change of the data
NO_QUESTION = -1


def vocab_size(num_keys: int) -> int:
    """Ids of the filler, the keys and as many values."""
    return 1 + 2 * num_keys


def recall_rows(
    stream: Stream, pairs: Sequence[int], shown: Sequence[bool], *, length: int, num_keys: int
) -> dict[str, np.ndarray]:
    """Rows of MQAR.

    Args:
        stream: of random integers.
        pairs: number of pairs of each row, at most `num_keys` and `length // 4`.
        shown: whether the answers of the row are shown.
        length: T.
        num_keys: keys to choose from; values are as many.

    Returns:
        "tokens", int32 (B, T), and "targets", the answer at every question and `NO_QUESTION` elsewhere.

    Examples:
        >>> rows = recall_rows(Stream("example"), [2, 2], [False, True], length=10, num_keys=4)
        >>> rows["tokens"].tolist()
        [[3, 7, 1, 6, 0, 0, 0, 3, 0, 1], [2, 8, 1, 6, 1, 6, 2, 8, 2, 8]]
        >>> rows["targets"].tolist()
        [[-1, -1, -1, -1, -1, -1, -1, 7, -1, 6], [-1, -1, -1, -1, 6, -1, 8, -1, 8, -1]]
    """
    made = [
        _row(stream, count, answered, length, num_keys) for count, answered in zip(pairs, shown, strict=True)
    ]
    tokens, targets = (np.stack(arrays) for arrays in zip(*made, strict=True))
    return {"tokens": tokens, "targets": targets}


def _row(
    stream: Stream, pairs: int, shown: bool, length: int, num_keys: int
) -> tuple[np.ndarray, np.ndarray]:
    keys = 1 + _permutation(stream, num_keys)[:pairs]
    values = 1 + num_keys + _permutation(stream, num_keys)[:pairs]
    tokens, targets = np.zeros(length, np.int32), np.full(length, NO_QUESTION, np.int32)
    start = 2 * pairs
    tokens[:start:2], tokens[1:start:2] = keys, values
    rest = length - start
    if shown:
        questions = rest // 2
        orders = [_permutation(stream, pairs) for _ in range(-(-questions // pairs))]
        order = np.concatenate(orders)[:questions]
        places = start + 2 * np.arange(questions)
        tokens[places + 1] = values[order]
    else:
        order = np.arange(pairs)
        places = start + _permutation(stream, rest)[:pairs]
    tokens[places], targets[places] = keys[order], values[order]
    return tokens, targets


def _permutation(stream: Stream, count: int) -> np.ndarray:
    return np.argsort(stream.bits(count), kind="stable")
