"""Attention over trees among the measured cases: how it is spelled, and how it is called."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.suites.cases import Case

# Ours: over a uniform tree; over one whose families have random sizes; and causal, whatever the run's mask is.
UNIFORM, RAGGED, CAUSAL = OURS = ("hierarchical", "hierarchical-ragged", "hierarchical-causal")
# The layer of h-transformer-1d without its projections.
PEER = "h-transformer"


def spells_tree(mechanism: str) -> bool:
    """Whether this is a spelling of attention over a tree, well formed or not."""
    return re.split(r"[:+]", mechanism)[0] == "tree"


def branching(mechanism: str) -> tuple[int, ...]:
    """Sizes of families from the leaves up, as in tree:64x16.

    Raises:
        ValueError: there are none; the message says how they are spelled.
    """
    if not re.fullmatch(r"tree:\d+(x\d+)*", mechanism):
        raise ValueError(
            f"mechanism {mechanism!r} must be tree:SIZESxSIZES, as in 'tree:64x16', to be measured."
        )
    return tuple(int(size) for size in mechanism.removeprefix("tree:").split("x"))


def peer_mechanism(mechanism: str) -> str:
    """What the peer is measured with: blocks as large as our lowest families, pairs above them."""
    return f"tree:{branching(mechanism)[0]}x2"


def ragged_tree(length: int, sizes: tuple[int, ...]) -> Any:
    """An ordered tree whose families have random sizes, from half of those given to the whole."""
    import numpy as np

    from jaxattn import Tree

    rng = np.random.default_rng(0)
    nodes: list[Any] = [1] * length  # numbers of tokens, or lists of nodes
    level = 0
    while len(nodes) > 1:
        size = sizes[min(level, len(sizes) - 1)]
        ends = np.cumsum(rng.integers(-(-size // 2), size + 1, len(nodes)))
        parts = np.split(np.arange(len(nodes)), ends[ends < len(nodes)])
        nodes = [len(p) for p in parts] if level == 0 else [[nodes[i] for i in p] for p in parts]
        level += 1
    return Tree.from_lengths(nodes if level == 1 else nodes[0])


def attention(case: "Case") -> Callable[..., Any]:
    """Our function of the case's inputs.

    Raises:
        NotImplementedError: the case's implementation does not take trees.
    """
    import jaxattn

    if case.implementation not in OURS:
        raise NotImplementedError(f"trees run on {', '.join(OURS)}, not on {case.implementation!r}.")
    sizes = branching(case.mechanism)
    if case.implementation == RAGGED:
        tree = ragged_tree(case.length, sizes)
    else:
        tree = jaxattn.Tree.uniform(case.length, sizes)
    causal = case.causal or case.implementation == CAUSAL
    return lambda query, key, value: jaxattn.hierarchical_attention(query, key, value, tree, is_causal=causal)
