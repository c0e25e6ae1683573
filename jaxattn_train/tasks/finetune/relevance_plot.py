"""A plot of texts whose tokens are coloured by relevance."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

COLUMNS = 96
"""Characters in a line."""


class Coloured(NamedTuple):
    """A text to draw."""

    heading: str
    tokens: Sequence[str]
    relevance: np.ndarray
    """A non-negative number for each token; the largest has the strongest colour."""
    wrong: bool = False
    """Whether the heading is marked."""


def token_strings(encoder: Any, ids: np.ndarray) -> list[str]:
    """The tokens as text, without a tokenizer's marks of spaces.

    Args:
        encoder: a `TextEncoder` with its tokenizer.
        ids: of one text.
    """
    import tokenizers

    content = dict(encoder.tokenizer.files)["tokenizer.json"]
    tokenizer = tokenizers.Tokenizer.from_str(content)
    special = {entry["id"] for entry in json.loads(content).get("added_tokens", [])}
    found = []
    for i in map(int, ids):
        token = tokenizer.id_to_token(i) or ""
        found.append(token if i in special else tokenizer.decode([i]).strip() or token)
    return found


def plot_relevance(texts: Sequence[Coloured], path: Path, *, title: str) -> None:
    """Draws texts one below the other.

    Args:
        texts: what to draw.
        path: of the picture.
        title: above it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    colours = matplotlib.colormaps["Oranges"]
    layout = [(text, _lines(text.tokens)) for text in texts]
    rows = 1.5 + sum(1.4 + len(lines) * 1.3 + 0.6 for _, lines in layout)
    size = 7.5  # points; a monospace letter is 0.6 of it wide
    figure = Figure(figsize=((COLUMNS + 4) * 0.6 * size / 72, rows * 1.5 * size / 72))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-2, COLUMNS + 2), ylim=(rows, 0))
    axis.set_axis_off()
    # parse_math: a $ in a text is not a formula.
    style: dict[str, Any] = {"family": "monospace", "fontsize": size, "va": "center", "parse_math": False}
    title += "; the darker a token, the more relevant; wrong predictions in red"
    axis.text(0, 0.8, title, **(style | {"fontsize": size + 1}), weight="bold")
    y = 2.2
    for text, lines in layout:
        axis.text(0, y, text.heading, **style, color="firebrick" if text.wrong else "dimgrey")
        y += 1.4
        largest = max(float(np.max(text.relevance, initial=0.0)), 1e-12)
        for line in lines:
            for place, index in line:
                strength = 0.85 * float(text.relevance[index]) / largest
                box = {"facecolor": colours(strength), "edgecolor": "none", "pad": 1.2}
                colour = "white" if strength > 0.6 else "black"
                axis.text(place, y, text.tokens[index], **style, color=colour, bbox=box)
            y += 1.3
        y += 0.6
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # an emoji is drawn as an empty box
        figure.savefig(path, dpi=130)


def _lines(tokens: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Where each token goes: lines of (column, number of the token)."""
    lines: list[list[tuple[int, int]]] = [[]]
    column = 0
    for index, token in enumerate(tokens):
        if column and column + len(token) > COLUMNS:
            lines.append([])
            column = 0
        lines[-1].append((column, index))
        column += len(token) + 1
    return lines
