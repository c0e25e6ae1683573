"""Trees from the character offsets of tokens and the character spans of parts of the text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxattn.tree.builders.outline import Outline, from_starts


def offsets_outline(offsets: Any, spans: Sequence[Any], length: int | None) -> Outline:
    """The outline of tokens in spans; text between two spans belongs to the first of them."""
    characters = _pairs("offsets", offsets)
    levels: list[_Spans] = []
    for i, given in enumerate(spans):
        levels.append(_Spans(i, given, levels))
    is_special = characters[:, 0] >= characters[:, 1]
    texts = np.flatnonzero(~is_special)
    back = np.flatnonzero(np.diff(characters[texts, 0]) < 0)
    if len(back):
        token = texts[back[0] + 1]
        raise ValueError(
            f"offsets must not decrease; offsets[{token}] = {_pair(characters[token])} starts before the previous "
            "token. Use Tree.join for several texts."
        )
    labels = _labels(characters[:, 0], levels)
    new = is_special | np.roll(is_special, 1)
    new[0] = True
    starts = []
    for label in labels:
        new = new | (label != np.roll(label, 1))
        starts.append(new)
    return from_starts(np.arange(len(characters)), starts[::-1], length)


class _Spans:
    """The spans of one level, and the span of the level above that contains each."""

    def __init__(self, level: int, given: Any, above: "list[_Spans]"):
        name = f"spans[{level}]"
        pairs = _pairs(name, given)
        for i, pair in enumerate(pairs):
            if pair[0] >= pair[1]:
                raise ValueError(
                    f"{name} must hold (start, end) with start < end; got {_pair(pair)} at [{i}]."
                )
            if i and pair[0] < pairs[i - 1, 1]:
                raise ValueError(
                    f"{name} must be sorted without overlap; {name}[{i}] = {_pair(pair)} starts "
                    f"before the end of {_pair(pairs[i - 1])}."
                )
        self.starts = pairs[:, 0]
        self.parents = np.zeros(len(pairs), np.int64)
        if not above:
            return
        self.parents, lasts = _labels(pairs[:, 0], above)[-1], _labels(pairs[:, 1] - 1, above)[-1]
        outer = f"spans[{level - 1}]"
        for i in np.flatnonzero((self.parents != lasts) | (self.parents < 0))[:1]:
            ends = [f"{outer}[{p}]" if p >= 0 else f"no span of {outer}" for p in (self.parents[i], lasts[i])]
            raise ValueError(
                f"{name} must not cross the borders of {outer}; {name}[{i}] = {_pair(pairs[i])} starts in "
                f"{ends[0]} and ends in {ends[1]}."
            )


def _labels(positions: Int[np.ndarray, " n"], levels: list[_Spans]) -> list[Int[np.ndarray, " n"]]:
    """The span of every level that each character belongs to; −1 where the span above contains none."""
    found = []
    above = np.zeros(len(positions), np.int64)
    for level in levels:
        preceding = np.searchsorted(level.starts, positions, side="right") - 1
        first = np.searchsorted(level.parents, above, side="left")
        last = np.searchsorted(level.parents, above, side="right") - 1
        above = np.where(first <= last, np.clip(preceding, first, last), -1)
        found.append(above)
    return found


def _pairs(name: str, given: Any) -> Int[np.ndarray, "n 2"]:
    try:
        pairs = np.asarray(given)
    except ValueError:
        pairs = np.empty(0)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.dtype.kind not in "iu":
        shown = str(given)
        raise ValueError(
            f"{name} must be a list of one or more (start, end) pairs of integers; got "
            f"{shown if len(shown) < 80 else shown[:76] + ' …'}."
        )
    return pairs.astype(np.int64)


def _pair(pair: Any) -> str:
    return f"({pair[0]}, {pair[1]})"
