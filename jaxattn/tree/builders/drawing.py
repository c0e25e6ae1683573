"""Trees as text and as plots."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxattn.tree.builders.nested import to_nested
from jaxattn.tree.builders.outline import Outline

# Larger trees are summarised, and their leaves are not named in plots.
DRAWN_LEAVES, DRAWN_LEVELS = 64, 12


def describe(outline: Outline, tokens: Sequence[Any] | None) -> str:
    """A line for each level of a tree, and its nodes if they are few."""
    names = _names(outline, tokens)
    leaves, order = len(outline.tokens), "ordered" if outline.is_ordered else "not ordered"
    slots = f"{leaves} tokens" if leaves == outline.length else f"{leaves} of {outline.length} tokens"
    lines = [f"{slots} in a tree of height {len(outline.sizes)}, {order}"]
    for level, sizes in reversed(list(enumerate(outline.sizes))):
        low, high = sizes.min(), sizes.max()
        size = f"{high}" if low == high else f"{low} to {high}, {sizes.mean():.3g} on average"
        nodes = _count(int(sizes.sum()), "node", "nodes")
        lines.append(f"level {level}: {nodes} in {_count(len(sizes), 'family', 'families')} of {size}")
    if leaves <= DRAWN_LEAVES and len(outline.sizes) <= DRAWN_LEVELS:
        lines += ["", *_drawing(to_nested(outline), names)]
    return "\n".join(lines)


def _drawing(node: list[Any], names: list[str]) -> list[str]:
    """A dot for a node, followed by its tokens or its only child, or above all its children."""
    if isinstance(node[0], int):
        return ["• " + " ".join(names[token] for token in node)]
    parts = [_drawing(child, names) for child in node]
    if len(parts) == 1:
        return ["• " + parts[0][0], *("  " + line for line in parts[0][1:])]
    return ["•", *("  " + line for part in parts for line in part)]


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _names(outline: Outline, tokens: Sequence[Any] | None) -> list[str]:
    least = int(outline.tokens.max()) + 1
    if tokens is None:
        return [str(i) for i in range(least)]
    if len(tokens) < least:
        raise ValueError(f"tokens must have at least {least} items, one for each leaf; got {len(tokens)}.")
    return [repr(str(token))[1:-1] for token in tokens]  # escapes line breaks


def plot(outline: Outline, tokens: Sequence[Any] | None, ax: Any) -> Any:
    """Draws a tree, root on top, on the axes given or on new ones."""
    try:
        # The object interface needs no display and leaves no global state behind.
        from matplotlib.collections import LineCollection
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib, or jaxattn[train]") from error
    names, leaves, height = _names(outline, tokens), len(outline.tokens), len(outline.sizes)
    named = leaves <= DRAWN_LEAVES
    if ax is None:
        size = (min(max(0.28 * leaves, 4.0), 14.0), min(max(0.55 * height + 1.0, 2.4), 8.0))
        ax = Figure(figsize=size, layout="constrained").subplots()
    x = np.arange(leaves, dtype=float)
    lines, dots = [], [np.stack([x, np.zeros(leaves)], axis=1)]
    for level, sizes in enumerate(outline.sizes):
        starts = np.cumsum(sizes) - sizes
        left, right = x[starts], x[starts + sizes - 1]
        lines += [np.array([(a, level), (a, level + 1)]) for a in x]
        lines += [np.array([(a, level + 1), (b, level + 1)]) for a, b in zip(left, right, strict=True)]
        x = (left + right) / 2
        dots.append(np.stack([x, np.full(len(x), level + 1.0)], axis=1))
    ax.add_collection(LineCollection(lines, colors="0.6", linewidths=1.0 if named else 0.5, zorder=1))
    for level, points in enumerate(dots):
        ax.scatter(*points.T, s=(14 if level else 8) if named else 2, color=f"C{level}", zorder=2)
    ax.set(xlim=(-0.75, leaves - 0.25), ylim=(-0.3, height + 0.3), ylabel="level")
    ax.set_yticks(range(height + 1) if height <= DRAWN_LEVELS else [0, height])
    if named:
        labels = [names[token] for token in outline.tokens]
        upright = max(map(len, labels)) > 2
        ax.set_xticks(range(leaves), labels, rotation=90 if upright else 0, fontsize="small")
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{leaves} tokens")
    ax.tick_params(axis="x", length=0)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    return ax
