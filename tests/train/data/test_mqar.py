"""Multi-query associative recall: what the rows hold."""

import numpy as np
import pytest

from jaxattn_train.data.generators.counter_random import Stream
from jaxattn_train.data.generators.mqar import NO_QUESTION, recall_rows, vocab_size

LENGTH, KEYS = 64, 16


def rows(shown, pairs=(1, 5, 16), seed=0):
    return recall_rows(Stream("test", seed), pairs, [shown] * len(pairs), length=LENGTH, num_keys=KEYS)


@pytest.mark.parametrize("shown", [False, True])
def test_every_answer_is_the_value_that_its_key_came_with(shown):
    made = rows(shown)
    for pairs, tokens, targets in zip((1, 5, 16), made["tokens"], made["targets"], strict=True):
        keys, values = tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert keys.min() >= 1 and keys.max() <= KEYS
        assert values.min() > KEYS and values.max() < vocab_size(KEYS)
        bound = dict(zip(keys.tolist(), values.tolist(), strict=True))
        asked = np.flatnonzero(targets != NO_QUESTION)
        assert asked.min() >= 2 * pairs
        assert [bound[key] for key in tokens[asked].tolist()] == targets[asked].tolist()
        if shown:
            assert len(asked) == (LENGTH - 2 * pairs) // 2
            np.testing.assert_array_equal(tokens[asked + 1], targets[asked])
        else:
            assert sorted(tokens[asked]) == sorted(keys)
            rest = np.delete(tokens[2 * pairs :], asked - 2 * pairs)
            assert not rest.any()


def test_rows_depend_on_the_stream_alone():
    np.testing.assert_array_equal(rows(False)["tokens"], rows(False)["tokens"])
    assert (rows(False)["tokens"] != rows(False, seed=1)["tokens"]).any()
