"""Many steps of causal hierarchical attention at once: the new tokens of one sequence, level by level.

For uniform trees. A level holds the nodes that the new tokens touch, behind the earlier children of the node that is
being filled; where the first of them stands among its siblings depends on how many tokens came before.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxattn.tree.causal import Scored, combine
from jaxattn.tree.decoding import Token
from jaxattn.tree.pooling import Biases, pool, scores
from jaxattn.tree.tree import Tree


class Shifted(NamedTuple):
    """A map (K, size, …) <-> (K, groups, width, …) of consecutive entries, the first one at `offset`."""

    size: int
    shape: tuple[int, int]
    offset: Array | int

    def split(self, x: Array, fill: float = 0.0) -> Array:
        """(K, size, …) -> (K, groups, width, …); `fill` before and after."""
        groups, width = self.shape
        room = jnp.full((x.shape[0], groups * width, *x.shape[2:]), fill, x.dtype)
        return self._cut(lax.dynamic_update_slice_in_dim(room, x, self.offset, axis=1))

    def follow(self, x: Array, before: Array) -> Array:
        """`split` with `before` (K, width, …) in the first group; x replaces its entries from `offset` on."""
        groups, width = self.shape
        room = jnp.pad(before, [(0, 0), (0, (groups - 1) * width), *[(0, 0)] * (x.ndim - 2)])
        return self._cut(lax.dynamic_update_slice_in_dim(room, x, self.offset, axis=1))

    def join(self, x: Array) -> Array:
        """The inverse of `split`."""
        flat = x.reshape(x.shape[0], -1, *x.shape[3:])
        return lax.dynamic_slice_in_dim(flat, self.offset, self.size, axis=1)

    def _cut(self, x: Array) -> Array:
        return x.reshape(x.shape[0], *self.shape, *x.shape[2:])


def step_tokens(
    tree: Tree,
    levels: Any,
    tokens: Token,
    position: Array,
    count: Array,
    biases: Biases,
    scale: float,
    include_self: bool,
) -> tuple[Any, Array]:
    """Lets new tokens attend and adds them to the open nodes, as `step_token` does one by one.

    Args:
        tree: a uniform tree.
        levels: the fields of a `HierarchicalState` of one sequence but its length.
        tokens: T of them, every array with an axis of tokens in front.
        position: () the index of the first.
        count: () how many are tokens; the others, at the end, are padding with log weight −inf.
        biases: one a level.
        scale: factor on the scores.
        include_self: whether a token attends to itself.

    Returns:
        (new levels, outputs (T, K, G, V)).
    """
    means, log_weights, _ = levels
    query, mean, log_weight = (jnp.moveaxis(x, 0, 1) for x in tokens)
    length = query.shape[1]
    last = position + count - 1
    scored: list[Scored] = []
    opened, parents = [], []
    below = 1
    for level, (size, bias) in enumerate(zip(tree.branching, biases, strict=True)):
        span = below * size
        first = position // below  # the first node of the level that the tokens touch
        group = Shifted(mean.shape[1], ((length - 2 + 2 * span) // span, size), first % size)
        log_before = jnp.where(jnp.arange(size) < group.offset, log_weights[level], -jnp.inf)
        mean = group.follow(mean, means[level].astype(mean.dtype))
        log_weight = group.follow(log_weight, log_before.astype(log_weight.dtype))
        # Behind the new nodes there are none.
        after = jnp.arange(group.shape[0] * size).reshape(group.shape) >= group.offset + group.size
        log_weight = jnp.where(after, -jnp.inf, log_weight)
        own = level == 0 and include_self
        scored.append(_score(query, mean, log_weight, group, position, below, bias, scale, own))
        current = last // span - position // span
        opened.append([lax.dynamic_index_in_dim(x, current, 1, keepdims=False) for x in (mean, log_weight)])
        parents.append(last // span)
        log_weight, mean = pool(log_weight, mean)
        below = span
    new = (*zip(*opened, strict=True), jnp.stack(parents))
    # Without a token nothing changes.
    new = jax.tree.map(lambda after, before: jnp.where(count > 0, after, before), new, tuple(levels))
    return new, jnp.moveaxis(combine(scored), 1, 0)


def _score(
    query: Array,
    mean: Array,
    log_weight: Array,
    group: Shifted,
    position: Array,
    below: int,
    bias: Array | None,
    scale: float,
    with_own: bool,
) -> Scored:
    """The logits of every token for the earlier siblings of its ancestor on one level."""
    length, (groups, size) = query.shape[1], group.shape
    span = below * size
    if span <= length:
        # In tiles of the tokens below one parent, which score that parent's children.
        tokens = Shifted(length, (groups, span), position % span)
        slots = (jnp.arange(span) // below)[None, :, None, None]
        index = jnp.arange(size)
        rows = slots.reshape(-1)
        earlier = index <= slots if with_own else index < slots
    else:
        # They are below two parents at most, and score the children of both.
        tokens = Shifted(length, (1, length), 0)
        mean, log_weight = (x.reshape(x.shape[0], 1, -1, *x.shape[3:]) for x in (mean, log_weight))
        slots = ((position + jnp.arange(length)) // below - position // span * size)[None, :, None, None]
        index = jnp.arange(groups * size)
        rows = slots.reshape(-1) % size
        earlier = (index <= slots if with_own else index < slots) & (index // size == slots // size)
    if bias is not None:
        bias = jnp.take(bias, rows, axis=1)[:, None]  # (K, 1, R, G, b)
        bias = jnp.tile(bias, index.size // size)
    width = query.shape[-1]
    logits = scores(tokens.split(query), mean[..., :width], scale, bias) + log_weight[:, :, None, None, :]
    return tokens, jnp.where(earlier, logits, -jnp.inf), mean[..., width:]
