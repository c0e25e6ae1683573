"""Trees from nested lists, and back. Loops, not recursion: lists may be nested thousands deep."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxattn.tree.builders.outline import Outline, from_preorder


def nested_outline(nested: Any, length: int | None) -> Outline:
    """The outline of nested lists of token indices."""
    depths, sizes, values = _preorder("nested", nested)
    leaves = values[sizes == 0]
    _check_leaves(nested, leaves)
    return from_preorder(depths, sizes, leaves, length)


def lengths_outline(lengths: Any, length: int | None) -> Outline:
    """The outline of nested lists of token counts."""
    depths, sizes, values = _preorder("lengths", lengths)
    if bad := np.flatnonzero((sizes == 0) & (values < 1)).tolist():
        path = [_index(path) for path, _ in _walk(lengths)][bad[0]]
        raise ValueError(f"lengths must be positive; the one at {path} is {values[bad[0]]}.")
    # Every count becomes a node followed by its tokens, one level deeper.
    copies = np.where(sizes > 0, 1, values + 1)
    source = np.repeat(np.arange(len(copies)), copies)
    is_token = np.arange(len(source)) > (np.cumsum(copies) - copies)[source]
    sizes = np.where(sizes > 0, sizes, values)[source]
    tokens = np.arange(is_token.sum())
    return from_preorder(depths[source] + is_token, np.where(is_token, 0, sizes), tokens, length)


def to_nested(outline: Outline) -> list[Any]:
    """The nested lists of an outline; a node with one child is a list of one."""
    nodes: list[Any] = outline.tokens.tolist()
    for sizes in outline.sizes:
        ends = np.cumsum(sizes)
        nodes = [nodes[start:end] for start, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True)]
    return nodes[0]


def _is_list(item: Any) -> bool:
    return isinstance(item, list | tuple | range) or (isinstance(item, np.ndarray) and item.ndim > 0)


def _walk(nested: Any) -> Iterator[tuple[list[int], Any]]:
    """All lists and numbers in preorder with their paths; the path is reused, so copy it to keep it."""
    path: list[int] = []
    yield path, nested
    open_lists = [iter(enumerate(nested))]
    while open_lists:
        step = next(open_lists[-1], None)
        if step is None:
            open_lists.pop()
            del path[-1:]
            continue
        path.append(step[0])
        yield path, step[1]
        if _is_list(step[1]):
            open_lists.append(iter(enumerate(step[1])))
        else:
            path.pop()


def _index(path: Sequence[int]) -> str:
    return "".join(f"[{i}]" for i in path)


def _preorder(
    name: str, nested: Any
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"], Int[np.ndarray, " E"]]:
    """Depths, numbers of children (0 for a number) and numbers (-1 for a list)."""
    if not _is_list(nested):
        raise ValueError(f"{name} must be a list of integers and of such lists; got {nested!r}.")
    found = []
    for path, item in _walk(nested):
        if _is_list(item):
            if len(item) == 0:
                node = f"node {_index(path)}" if path else "the root"
                raise ValueError(f"{name} must not contain empty lists; {node} is empty.")
            found.append((len(path), len(item), -1))
        elif isinstance(item, int | np.integer) and not isinstance(item, bool):
            found.append((len(path), 0, int(item)))
        else:
            raise ValueError(f"{name} must hold integers and lists; the item at {_index(path)} is {item!r}.")
    depths, sizes, values = np.array(found, np.int64).T
    return depths, sizes, values


def _check_leaves(nested: Any, leaves: Int[np.ndarray, " n"]) -> None:
    """Raises unless the leaves are 0 … n − 1, each once."""
    wanted = np.arange(len(leaves))
    if np.array_equal(np.sort(leaves), wanted):
        return
    found, counts = np.unique(leaves, return_counts=True)

    def paths(leaf: int) -> list[str]:
        return [_index(path) for path, item in _walk(nested) if not _is_list(item) and item == leaf]

    if (counts > 1).any():
        leaf = found[counts > 1][0]
        *most, last = paths(leaf)
        times = "twice" if len(most) == 1 else f"{len(most) + 1} times"
        fault = f"leaf {leaf} occurs {times}, at {', '.join(most)} and {last}"
    elif found[0] < 0:
        fault = f"leaf {found[0]} at {paths(found[0])[0]} is negative"
    else:
        fault = f"leaf {np.setdiff1d(wanted, found)[0]} is missing, though there is a leaf {found[-1]}"
    raise ValueError(f"nested must hold every token index from 0 to n − 1 exactly once; {fault}.")
