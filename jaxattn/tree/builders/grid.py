"""Trees over the patches of an image."""

import numpy as np

from jaxattn.tree.builders.outline import Outline, check_size, from_starts


def grid_outline(height: int, width: int, branching: int) -> Outline:
    """Blocks of branching × branching patches, blocks of these blocks and so on, until one is left."""
    check_size("height", height, 1)
    check_size("width", width, 1)
    check_size("branching", branching, 2)
    sides = [1]
    while sides[-1] < max(height, width):
        sides.append(sides[-1] * branching)
    y, x = (axis.ravel() for axis in np.indices((height, width)))
    # lexsort sorts by its last key first: the coarsest block.
    tokens = np.lexsort([key for side in sides for key in (x // side, y // side)])
    starts = []
    for side in sides[1:-1]:
        block = y[tokens] // side * width + x[tokens] // side
        starts.append(np.append(True, block[1:] != block[:-1]))
    return from_starts(tokens, starts, None)
