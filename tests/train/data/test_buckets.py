import chex
import jax
import numpy as np
import pytest

from jaxattn_train.data.batches import BatchStream, make_batch
from jaxattn_train.data.buckets import Buckets, Chosen, Kind, bucket_lengths
from jaxattn_train.data.sequences import Sequences

LENGTHS = np.random.default_rng(0).integers(1, 60, 103)
PART = Sequences.of([np.arange(1, n + 1) for n in LENGTHS], np.arange(103) % 3)


def _buckets(batch_size=8, max_length=60):
    return Buckets(LENGTHS, max_length=max_length, batch_size=batch_size)


def _take(stream, count):
    return [next(stream) for _ in range(count)]


def test_an_epoch_meets_every_example_once_in_batches_of_few_lengths():
    buckets = _buckets()
    for chosen in (buckets.epoch(3, 0), buckets.epoch(3, 1), buckets.in_order()):
        assert sorted(np.concatenate([c.rows for c in chosen])) == list(range(103))
        assert len(chosen) == len(buckets) == 13
        assert sorted(len(c.rows) for c in chosen) == [7] + [8] * 12
        assert all(LENGTHS[c.rows].max() <= c.kind.length for c in chosen)
        assert [k.length for k in buckets.kinds] == [16, 32, 60]
        assert {c.kind for c in chosen} == set(buckets.kinds)
    # all that fill a batch of their own length are in one
    short = sum(len(c.rows) for c in buckets.in_order() if c.kind.length == 16)
    assert short == (LENGTHS <= 16).sum() // 8 * 8


def test_examples_with_large_trees_come_last_whatever_their_length():
    wide = np.arange(103) % 10 == 0
    kinds = [Kind(60, bool(large)) for large in wide]
    buckets = Buckets(LENGTHS, max_length=60, batch_size=4, kinds=kinds)
    chosen = buckets.in_order()
    assert buckets.kinds[-1] == Kind(60, True)
    for each in chosen:
        assert each.kind.wide or not wide[each.rows].any()
    assert sorted(np.concatenate([c.rows for c in chosen])) == list(range(103))


def test_the_order_depends_on_seed_and_epoch_alone():
    buckets = _buckets()
    first = buckets.epoch(1, 0)
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(first, _buckets().epoch(1, 0), strict=True))
    for other in (buckets.epoch(2, 0), buckets.epoch(1, 1)):
        assert not all(np.array_equal(a.rows, b.rows) for a, b in zip(first, other, strict=True))
    assert [c.kind for c in first] == [c.kind for c in buckets.epoch(2, 0)]
    assert [c.kind for c in first] != [c.kind for c in buckets.epoch(1, 1)]


def test_classes_are_spread_evenly_over_the_batches():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [400, 160, 80]))

    def counts(strata, seed):
        chosen = Buckets(np.full(640, 9), max_length=9, batch_size=16, strata=strata).epoch(seed, 0)
        return np.array([np.bincount(labels[c.rows], minlength=3) for c in chosen])

    assert (abs(counts(labels, 3) - [10, 4, 2]) <= 1).all()
    assert abs(counts(None, 3) - [10, 4, 2]).max() > 2  # left to chance


def test_spreading_classes_keeps_all_else():
    labels = LENGTHS % 3
    buckets = Buckets(LENGTHS, max_length=60, batch_size=8, strata=labels)
    plain = _buckets()
    for seed, epoch in ((3, 0), (3, 1), (4, 0)):
        chosen = buckets.epoch(seed, epoch)
        assert sorted(np.concatenate([c.rows for c in chosen])) == list(range(103))
        assert [c.kind for c in chosen] == [c.kind for c in plain.epoch(seed, epoch)]
    first, again, other = (buckets.epoch(*at) for at in ((3, 0), (3, 0), (3, 1)))
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.rows, b.rows) for a, b in zip(first, other, strict=True))


def test_bucket_lengths_are_few_and_end_at_the_maximum():
    assert bucket_lengths(512) == (16, 32, 64, 128, 256, 512)
    assert bucket_lengths(100) == (16, 32, 64, 100)
    assert bucket_lengths(10) == (10,)
    with pytest.raises(ValueError, match="at most 20"):
        _buckets(max_length=20)


def test_rows_that_fill_up_a_batch_have_no_weight():
    batch = make_batch(PART, None, Chosen(Kind(60), np.array([5, 9, 11])), 8)
    assert batch["weights"].mean() == 1
    assert (batch["weights"][3:] == 0).all()
    assert batch["mask"].sum(axis=1)[:3].tolist() == LENGTHS[[5, 9, 11]].tolist()
    assert (batch["tokens"] > 0).tolist() == batch["mask"].tolist()
    assert batch["labels"][:3].tolist() == [2, 0, 2]


@pytest.mark.parametrize("before", [0, 1, 12, 13, 30])
def test_a_restored_stream_gives_exactly_the_next_batches(before):
    stream = BatchStream(PART, None, _buckets(), seeds=(0, 1))
    _take(stream, before)
    position = stream.get_state()
    expected = _take(stream, 15)
    fresh = BatchStream(PART, None, _buckets(), seeds=(0, 1))
    _take(fresh, 2)
    fresh.set_state(position)
    chex.assert_trees_all_equal(expected, _take(fresh, 15))


def test_a_seed_reads_the_same_alone_beside_others_and_in_parts():
    alone, beside = (BatchStream(PART, None, _buckets(), seeds=seeds) for seeds in ((5,), (4, 5)))
    halves = [BatchStream(PART, None, _buckets(), seeds=(5,), rows=r) for r in (slice(0, 4), slice(4, 8))]
    for _ in range(14):
        one, two = next(alone), next(beside)
        chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], one), jax.tree.map(lambda x: x[1], two))
        parts = [next(half) for half in halves]
        joined = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), *parts)
        chex.assert_trees_all_equal(one, joined)


def test_two_sequences_are_padded_by_the_longer():
    starts, sizes = np.zeros((8, 2), int), np.array([[5, 20], [5, 60]] * 4)
    pairs = Sequences(np.arange(1, 61, dtype=np.uint8), starts, sizes, np.zeros(8, int))
    buckets = Buckets(pairs.lengths, max_length=60, batch_size=4)
    batches = _take(BatchStream(pairs, None, buckets, seeds=(0,)), 2)
    assert {batch["tokens"].shape for batch in batches} == {(1, 4, 2, 32), (1, 4, 2, 60)}
    assert all((batch["mask"] == (batch["tokens"] > 0)).all() for batch in batches)
