"""What cannot become a tree is refused, with the place and what was found there."""

import pytest

from jaxattn.tree.tree import Tree, TreeShape

TEXT = [(0, 0), (0, 3), (4, 7), (7, 8), (9, 14), (14, 15), (15, 16), (17, 21), (21, 21)]
ERRORS = [
    (lambda: Tree.from_nested([[0, 1], []]), r"nested must not .* node \[1\] is empty"),
    (lambda: Tree.from_nested([[0], [[]]]), r"node \[1\]\[0\] is empty"),
    (lambda: Tree.from_nested([]), "nested .* the root is empty"),
    (lambda: Tree.from_nested([[0, 3], [1, 2], 3]), r"leaf 3 occurs twice, at \[0\]\[1\] and \[2\]"),
    (lambda: Tree.from_nested([0, 0, [0]]), r"leaf 0 occurs 3 times, at \[0\], \[1\] and \[2\]\[0\]"),
    (lambda: Tree.from_nested([[0, 1], [3, 5, 10**15]]), "leaf 2 is missing"),
    (lambda: Tree.from_nested([0, [1, -1]]), r"leaf -1 at \[1\]\[1\] is negative"),
    (lambda: Tree.from_nested([0, ["a"]]), r"nested .* item at \[1\]\[0\] is 'a'"),
    (lambda: Tree.from_nested([0, True]), r"item at \[1\] is True"),
    (lambda: Tree.from_nested(3), "nested must be a list .* got 3"),
    (lambda: Tree.from_nested([0, 1, 2], 2), "length must be at least 3.* got 2"),
    (lambda: Tree.from_lengths([[3, 5], [4, 0]]), r"lengths must be positive; the one at \[1\]\[1\] is 0"),
    (lambda: Tree.from_lengths([3, []]), r"lengths .* node \[1\] is empty"),
    (lambda: Tree.uniform(0, 2), "length must be an integer >= 1; got 0"),
    (lambda: Tree.uniform(8, 1), r"branching\[0\] must be an integer >= 2; got 1"),
    (lambda: Tree.uniform(8, (4, 2.5)), r"branching\[1\] must be an integer >= 2; got 2.5"),
    (lambda: Tree.uniform(8, ()), "branching must be .* got none"),
    (lambda: Tree.grid(0, 3), "height must be an integer >= 1; got 0"),
    (lambda: Tree.grid(2, 3, 1), "branching must be an integer >= 2; got 1"),
    (lambda: Tree.join([]), "trees must hold at least one Tree; got none"),
    (lambda: Tree.stack([]), "trees must hold at least one Tree; got none"),
    (lambda: TreeShape.union([]), "shapes must hold at least one TreeShape; got none"),
    (lambda: Tree.stack([Tree.uniform(4, 2)] * 3).to_nested(), "tree must be unbatched; got a batch of 3"),
    (lambda: Tree.uniform(4, 2).describe(["a"]), "tokens must have at least 4 items.* got 1"),
]


@pytest.mark.parametrize(("build", "message"), ERRORS)
def test_errors(build, message, no_typecheck):
    with pytest.raises(ValueError, match=message):
        build()


OFFSET_ERRORS = [
    (
        [[(0, 8), (9, 15)], [(0, 3), (4, 14)]],
        r"spans\[1\]\[1\] = \(4, 14\) starts in spans\[0\]\[0\] and ends in",
    ),
    (
        [[(0, 8), (9, 15)], [(0, 8)], [(9, 15)]],
        r"spans\[2\]\[0\] = \(9, 15\) starts in no span of spans\[1\]",
    ),
    ([[(0, 8), (7, 15)]], r"spans\[0\]\[1\] = \(7, 15\) starts before the end of \(0, 8\)"),
    ([[(0, 8), (9, 9)]], r"spans\[0\] .* got \(9, 9\) at \[1\]"),
    ([(0, 8), (9, 15)], r"spans\[0\] must be a list"),
    ([[(0, 1), (2,)]], r"spans\[0\] must be a list"),
    ([[]], r"spans\[0\] must be a list"),
]


@pytest.mark.parametrize(("spans", "message"), OFFSET_ERRORS)
def test_span_errors(spans, message, no_typecheck):
    with pytest.raises(ValueError, match=message):
        Tree.from_offsets(TEXT, spans)


def test_offset_errors(no_typecheck):
    with pytest.raises(ValueError, match=r"offsets\[2\] = \(0, 2\) starts before"):
        Tree.from_offsets([(0, 2), (3, 4), (0, 2)], [[(0, 4)]])
    with pytest.raises(ValueError, match="offsets must be a list"):
        Tree.from_offsets([], [[(0, 4)]])
    with pytest.raises(ValueError, match="length must be at least 9"):
        Tree.from_offsets(TEXT, [], 4)


def test_padding_errors():
    tree = Tree.from_lengths([[3, 5], [4]])
    length, families, tiles = tree.shape
    bad = [
        ((length - 1, families, tiles), "shape.length must be at least 12.* got 11"),
        ((length, families[1:], tiles), "at least 3 levels.* got 2"),
        (
            (length, ((3, 4), *families[1:]), tiles),
            r"children\[0\] = \(3, 4\) is too small: level 0 .* up to 5",
        ),
        (
            (length, (families[0], (1, 2), (1, 2)), tiles),
            r"shape.children\[1\] = \(1, 2\) is too small: level 1",
        ),
        ((length, (*families[:2], (2, 2)), tiles), r"shape.children\[-1\] must be \(1, b\)"),
        ((length, families, tiles[1:]), "shape.query_tiles must have 2 entries, one fewer"),
        (
            (length, families, ((1, 8), (1, 16))),
            r"shape.query_tiles\[0\] = \(1, 8\) is too small: .* 2 tiles .* level 1",
        ),
        ((length, families, ((2, 8), (1, 8))), r"shape.query_tiles\[1\] = \(1, 8\) is too small"),
    ]
    for shape, message in bad:
        with pytest.raises(ValueError, match=message):
            tree.pad(TreeShape(*shape))
    with pytest.raises(ValueError, match=r"shape\.query_tiles must be None"):
        Tree.from_nested([[1, 0]]).pad(TreeShape(2, ((1, 2), (1, 1)), ((1, 8),)))
