import hashlib
import random

import numpy as np
import pytest

from jaxattn_train.data.generators import listops
from jaxattn_train.data.generators.counter_random import Stream
from jaxattn_train.data.generators.listops import ListOpsSpec, load_listops, make_shard, to_text
from jaxattn_train.data.generators.listops_trees import TOKENS, TreeSpec, draw_expressions
from jaxattn_train.errors import UserError

SMALL = ListOpsSpec(sizes=(40, 15, 10), shard_size=16)
# Of the three parts of SMALL.
SMALL_SHA256 = "65f72b9136e3c776bc27ea9dd2ac8e770d9914ee32758449a098ef40abd2dee5"


@pytest.fixture(scope="module")
def drawn():
    made = make_shard(7, 3, 600, TreeSpec())
    ends = np.cumsum(made["lengths"])
    texts = [to_text(made["codes"][a:b]) for a, b in zip(np.append(0, ends[:-1]), ends, strict=True)]
    return texts, made["labels"].tolist()


def parse(text):
    """Nested lists [operator, argument, ...] of a text, and how deep its deepest digit lies."""
    stack, deepest = [[]], 0
    for word in text.split():
        if word == "]":
            done = stack.pop()
            stack[-1].append(done)
        elif word[0] == "[":
            stack.append([word[1:]])
        else:
            stack[-1].append(int(word))
            deepest = max(deepest, len(stack))
    (whole,) = stack[0]
    return whole, deepest


def evaluate(node):
    if isinstance(node, int):
        return node
    arguments = [evaluate(argument) for argument in node[1:]]
    named = {"MIN": min, "MAX": max, "MED": lambda a: int(np.median(a)), "SM": lambda a: sum(a) % 10}
    return named[node[0]](arguments)


def operators(node):
    if isinstance(node, int):
        return []
    return [node, *(deeper for argument in node[1:] for deeper in operators(argument))]


def specified(generator, depth=1):
    """A tree drawn as the published specification says, or an integer."""
    if depth == 10 or generator.random() > 0.25:
        return generator.randrange(10)
    name = generator.choice(["MIN", "MAX", "MED", "SM"])
    return [name, *(specified(generator, depth + 1) for _ in range(generator.randint(2, 10)))]


def tokens(node):
    return 1 if isinstance(node, int) else 2 + sum(map(tokens, node[1:]))


def test_every_answer_is_right(drawn):
    for text, label in zip(*drawn, strict=True):
        assert evaluate(parse(text)[0]) == label
    assert set(drawn[1]) == set(range(10))


def test_lengths_depths_and_arguments_are_as_specified(drawn):
    trees, depths = zip(*(parse(text) for text in drawn[0]), strict=True)
    lengths = [tokens(tree) for tree in trees]
    assert lengths == [len(text.split()) for text in drawn[0]]
    assert min(lengths) > 500 and max(lengths) < 2000
    assert max(depths) == 10
    nodes = [node for tree in trees for node in operators(tree)]
    assert {len(node) - 1 for node in nodes} == set(range(2, 11))
    counts = [sum(node[0] == name for node in nodes) for name in ("MIN", "MAX", "MED", "SM")]
    assert min(counts) > 0.23 * sum(counts)


def test_the_distribution_is_that_of_the_specification(drawn):
    generator = random.Random(0)
    reference = []
    while len(reference) < 300:
        tree = specified(generator)
        if 500 < tokens(tree) < 2000:
            reference.append(tree)
    ours = [parse(text)[0] for text in drawn[0]]
    edges = [500, 700, 900, 1150, 1500, 2000]
    shares = [np.histogram([tokens(t) for t in trees], edges)[0] / len(trees) for trees in (ours, reference)]
    np.testing.assert_allclose(*shares, atol=0.12)  # four standard deviations of the reference's share
    nodes = [[n for tree in trees for n in operators(tree)] for trees in (ours, reference)]
    arguments = [np.bincount([len(n) - 1 for n in every], minlength=11) / len(every) for every in nodes]
    np.testing.assert_allclose(*arguments, atol=0.01)
    digits = [
        np.bincount([a for n in every for a in n[1:] if isinstance(a, int)]) / len(every) for every in nodes
    ]
    np.testing.assert_allclose(*digits, atol=0.03)


def test_small_trees_are_all_there_and_the_bounds_are_strict():
    # At depth 2 an operator has 2 to 6 digits, so that lengths go from 4 to 8; taken are those between 4 and 8.
    made = draw_expressions(Stream("small"), 2000, TreeSpec(4, 8, max_depth=2, max_args=6))
    assert set(made["lengths"]) == {5, 6, 7}
    assert set(made["codes"]) == set(range(15))


def test_an_impossible_specification_ends():
    with pytest.raises(UserError, match="hardly one"):
        draw_expressions(Stream("x"), 1, TreeSpec(500, 2000, max_depth=2))
    with pytest.raises(UserError, match="between the bounds"):
        TreeSpec(10, 11)


def _hashes(splits):
    return [part.sha256() for part in splits[:3]]


def test_workers_do_not_matter_and_the_cache_is_used(tmp_path, monkeypatch):
    one = load_listops(SMALL, folder=tmp_path / "one", workers=1)
    assert hashlib.sha256(" ".join(_hashes(one)).encode()).hexdigest() == SMALL_SHA256
    assert [len(part) for part in one[:3]] == list(SMALL.sizes)
    assert [path.suffix for path in (tmp_path / "one").iterdir()] == [".npz"]  # no shards stay behind
    two = load_listops(SMALL, folder=tmp_path / "two", workers=2)
    (first,), (second,) = ((tmp_path / name).iterdir() for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    monkeypatch.setattr(listops, "make_shards", None)
    assert _hashes(load_listops(SMALL, folder=tmp_path / "two")) == _hashes(two)


def test_nothing_comes_twice(tmp_path, monkeypatch):
    few = ListOpsSpec(sizes=(60, 20, 20), shard_size=50, trees=TreeSpec(3, 5, max_depth=2, max_args=2))
    parts = load_listops(few, folder=tmp_path, workers=1)[:3]
    texts = [
        part.codes[start : start + size].tobytes()
        for part in parts
        for start, size in zip(part.starts[:, 0], part.lengths, strict=True)
    ]
    assert len(set(texts)) == len(texts) == 100  # of 400 there are, so that duplicates were drawn


def test_padding(tmp_path):
    part = load_listops(SMALL, folder=tmp_path, workers=1).test
    batch = part.padded(np.array([3, 0]), 2000)
    assert batch.tokens.shape == (2, 2000) and batch.tokens.dtype == np.int32
    for row, index in enumerate([3, 0]):
        text = to_text(batch.tokens[row, : batch.lengths[row]] - 1)
        assert evaluate(parse(text)[0]) == batch.labels[row] == part.labels[index]
        assert not batch.tokens[row, batch.lengths[row] :].any()
    assert batch.tokens.max() < listops.VOCABULARY_SIZE == len(TOKENS) + 1 == 16
    with pytest.raises(ValueError, match="length"):
        part.padded(np.arange(2), 100)


def test_bad_sizes_are_named(tmp_path):
    with pytest.raises(UserError, match="three sizes"):
        ListOpsSpec(sizes=(1, 0, 1))
    with pytest.raises(UserError, match="workers must be at least 1; got 0"):
        load_listops(SMALL, folder=tmp_path, workers=0)
