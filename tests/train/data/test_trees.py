import jax
import numpy as np
import pytest

from jaxattn.tree.tree import Tree
from jaxattn_train.data import trees as trees_module
from jaxattn_train.data.batches import BatchStream, make_batch
from jaxattn_train.data.buckets import Buckets, Kind
from jaxattn_train.data.sequences import Sequences
from jaxattn_train.data.trees import Trees, bounded, common_shapes, shape_of

RNG = np.random.default_rng(0)


def _random_lengths(rng):
    return [[int(n) for n in rng.integers(1, 30, rng.integers(1, 8))] for _ in range(rng.integers(1, 7))]


@pytest.mark.parametrize("most", [2, 3, 8])
def test_no_family_is_too_large_and_no_word_is_lost(most):
    for seed in range(20):
        lengths = _random_lengths(np.random.default_rng(seed))
        tree = Tree.from_lengths(bounded(lengths, most))
        assert tree.length == sum(map(sum, lengths))
        assert all(width <= most for _, width in tree.shape.children)


def test_what_is_small_enough_stays_as_it_is():
    assert bounded([[3, 5], [4]], 5) == [[3, 5], [4]]
    assert bounded([[11]], 4) == [[4, 3, 4]]
    assert bounded([[1, 1, 1, 1, 1]], 3) == [[1, 1], [1, 1, 1]]


def test_shapes_are_those_of_the_trees():
    for seed in range(10):
        nested = bounded(_random_lengths(np.random.default_rng(seed)), 4)
        built = Tree.from_lengths(nested).shape
        assert shape_of(nested) == built._replace(query_tiles=None)


@pytest.fixture(scope="module")
def texts():
    """Forty ordinary texts of three lengths, and one of many tiny sentences."""
    lengths = [bounded([[4] * n, [3]], 8) for n in (2, 5, 10) * 13] + [bounded([[1] * 40], 8)]
    tokens = [np.arange(1, 1 + shape_of(nested).length) for nested in lengths]
    return lengths, Sequences.of(tokens, np.zeros(len(tokens), int))


def test_a_single_odd_text_does_not_make_all_tables_large(texts, monkeypatch):
    monkeypatch.setattr(trees_module, "NEARLY_ALL", 0.9)  # of fourteen texts
    lengths, part = texts
    shapes = common_shapes({"train": lengths}, 64)
    assert list(shapes.of) == [Kind(16), Kind(32), Kind(64), Kind(64, True)]
    assert shapes.of[Kind(64)].children[0] == (16, 4)
    assert shapes.of[Kind(64, True)].children[0][0] == 64
    assert [kind.wide for kind in shapes.kinds["train"]] == [False] * 39 + [True]
    buckets = Buckets(part.lengths, max_length=64, batch_size=4, kinds=shapes.kinds["train"])
    trees = Trees(lengths, shapes.of)
    for chosen in buckets.in_order():
        stacked = trees.stack(chosen.rows, chosen.kind)
        assert stacked.shape == shapes.of[chosen.kind]
        for i, row in enumerate(chosen.rows):
            one = jax.tree.map(lambda x, i=i: x[i], stacked)
            padded = Tree.from_lengths(lengths[row]).pad(shapes.of[chosen.kind])
            assert all(
                np.array_equal(a, b)
                for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(padded), strict=True)
            )


def test_without_odd_texts_there_is_no_bucket_for_them():
    lengths = {"train": [bounded([[5, 5]], 8)] * 9, "test": [bounded([[5, 7]], 8)]}
    shapes = common_shapes(lengths, 16)
    assert list(shapes.of) == [Kind(16)]
    assert shapes.kinds["test"] == [Kind(16)]


def test_batches_of_seeds_hold_their_trees_and_every_tree_is_built_once(texts, monkeypatch):
    lengths, part = texts
    shapes = common_shapes({"train": lengths}, 64)
    buckets = Buckets(part.lengths, max_length=64, batch_size=4, kinds=shapes.kinds["train"])
    built = []
    make = Tree.from_lengths
    monkeypatch.setattr(Tree, "from_lengths", lambda nested: built.append(nested) or make(nested))
    trees = Trees(lengths, shapes.of)
    stream = BatchStream(part, trees, buckets, seeds=(0, 1))
    batches = [next(stream) for _ in range(2 * len(buckets))]
    assert len(built) == len(lengths)
    for batch in batches:
        assert batch["tree"].children[0].shape[:2] == (2, 4)
        assert batch["tree"].length == batch["tokens"].shape[-1]
    kinds = {tuple(leaf.shape for leaf in jax.tree.leaves(batch)) for batch in batches}
    assert len(kinds) == len(stream.examples())
    # tokens under the trees are the tokens of the mask
    first = make_batch(part, trees, buckets.in_order()[0], 4)
    places = first["tree"].inverse[0] >= 0
    assert (places == first["mask"]).all()
