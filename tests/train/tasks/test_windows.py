import numpy as np
import pytest

from jaxattn_train.tasks.charlm.windows import SeedStreams, consecutive_windows, random_windows

TEXT = np.arange(200, dtype=np.int32)
SIZES = {"context_length": 8, "batch_size": 4}


def _take(stream, count):
    return [next(stream) for _ in range(count)]


def test_windows_are_pieces_of_the_text():
    batch = next(random_windows(TEXT, seed=0, **SIZES))
    assert batch.shape == (4, 9)
    assert (np.diff(batch, axis=1) == 1).all()


def test_an_epoch_meets_every_window_once():
    stream = random_windows(TEXT, seed=0, **SIZES)
    starts = np.concatenate([batch[:, 0] for batch in _take(stream, 48)])
    assert sorted(starts) == list(range(192))
    assert not (starts[:8] == np.concatenate([batch[:, 0] for batch in _take(stream, 2)])).all()


def test_the_order_depends_on_the_seed_alone():
    first, again, other = (_take(random_windows(TEXT, seed=s, **SIZES), 3) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_processes_read_parts_of_the_same_batch():
    whole = _take(random_windows(TEXT, seed=3, **SIZES), 5)
    parts = [
        _take(random_windows(TEXT, seed=3, rows=rows, **SIZES), 5) for rows in (slice(0, 2), slice(2, 4))
    ]
    assert np.array_equal(whole, np.concatenate(parts, axis=1))


@pytest.mark.parametrize("before", [0, 1, 60])
def test_a_restored_stream_gives_exactly_the_next_batch(before):
    stream = SeedStreams(TEXT, seeds=(0, 1), **SIZES)
    _take(stream, before)
    position = stream.get_state()
    expected = _take(stream, 3)
    fresh = SeedStreams(TEXT, seeds=(0, 1), **SIZES)
    _take(fresh, 2)
    fresh.set_state(position)
    assert np.array_equal(expected, _take(fresh, 3))


def test_a_seed_reads_the_same_alone_and_beside_others():
    alone, beside = SeedStreams(TEXT, seeds=(5,), **SIZES), SeedStreams(TEXT, seeds=(4, 5), **SIZES)
    assert np.array_equal(next(alone)[0], next(beside)[1])


def test_consecutive_windows_predict_every_token_once():
    windows = consecutive_windows(TEXT, context_length=8)
    assert windows.shape == (24, 9)
    assert windows[:, 1:].ravel().tolist() == list(range(1, 193))


def test_evenly_spaced_windows_reach_both_ends():
    chosen = consecutive_windows(TEXT, context_length=8, count=5)
    assert chosen.shape == (5, 9)
    assert chosen[0, 0] == 0
    assert chosen[-1, 0] == 184
    assert len(consecutive_windows(TEXT, context_length=8, count=99)) == 24
