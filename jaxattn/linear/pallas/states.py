"""States: sums over the keys of some chunks, those of one segment where there are segments, inside a kernel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxattn.core.pallas.layout import Blocks
from jaxattn.core.pallas.products import as_column, as_row, nn, nt, tn
from jaxattn.linear.pallas.factors import LOWEST, Place, Step
from jaxattn.linear.pallas.plan import Plan
from jaxattn.linear.pallas.reading import Keys

# The rows of `Kept.rows`.
_WEIGHT, _TOP, _SEGMENT, _ROWS = 0, 1, 2, 8


class State(NamedTuple):
    """Arrays, or where they lie in VMEM.

    total (V, F): Σ_j e^(c_j − top) v_j φ_j'; weight (F, 1): Σ_j e^(c_j − top) φ_j; place: top and segment. Or
    cotangents of total and weight, without a place.
    """

    total: Any
    weight: Any
    place: Any = None

    def clear(self) -> None:
        """Makes it, in VMEM, the state of no keys."""
        self.total[...] = jnp.zeros_like(self.total)
        self.weight[...] = jnp.zeros_like(self.weight)
        if self.place is not None:
            self.place.top[...] = jnp.full_like(self.place.top, LOWEST)
            self.place.segment[...] = jnp.full_like(self.place.segment, -1)

    def load(self) -> "State":
        """The arrays in VMEM."""
        return jax.tree.map(lambda ref: ref[...], self)

    def store(self, arrays: "State") -> None:
        """Puts arrays into VMEM."""
        for ref, x in zip(jax.tree.leaves(self), jax.tree.leaves(arrays), strict=True):
            ref[...] = x

    def with_keys(self, keys: Keys, step: Step) -> "State":
        """The state after a step by these keys."""
        added = (keys.phi * step.keys).astype(keys.value.dtype)
        total = self.total * step.state + nt(keys.value, added)
        weight = self.weight * step.state + added.astype(jnp.float32).sum(axis=1, keepdims=True)
        return State(total, weight, step.place)

    def times(self, factor: Array) -> "State":
        """The sums, without the place, times a factor (1, 1)."""
        return State(self.total * factor, self.weight * factor)

    def of_keys(self, keys: Keys, factor: Array) -> tuple[Array, Array]:
        """A cotangent through the factors (1, C) of keys: to their features (F, C) and values (V, C)."""
        narrow = keys.value.dtype
        total = self.total.astype(narrow)
        of_phi = (tn(total, keys.value) + self.weight) * factor
        return of_phi, nn(total, keys.phi.astype(narrow)) * factor


class Kept(NamedTuple):
    """States beside all chunks in memory, or cotangents of them; in a kernel that of one chunk.

    total (B, K, chunks, V, F); rows (B, K, chunks, 8, F): the weight, the largest log weight, the segment.
    """

    total: Any
    rows: Any

    def specs(self, blocks: Blocks) -> "Kept":
        """Of the blocks."""
        return jax.tree.map(lambda x: blocks.state(*x.shape[3:]), self)

    def store(self, state: State) -> None:
        """Puts arrays there."""
        weight = as_row(state.weight)
        others = [] if state.place is None else [jnp.broadcast_to(x, weight.shape) for x in state.place]
        padding = jnp.zeros((_ROWS - 1 - len(others), weight.shape[1]), jnp.float32)
        self.total[...] = state.total
        self.rows[...] = jnp.concatenate([weight, *others, padding])

    def load(self) -> State:
        """The arrays; `total` may be missing."""
        rows = self.rows[...]
        total = None if self.total is None else self.total[...]
        place = Place(*(rows[i : i + 1, :1] for i in (_TOP, _SEGMENT)))
        return State(total, as_column(rows[_WEIGHT : _WEIGHT + 1]), place)


def kept_shapes(plan: Plan, batch: int, heads: int) -> Kept:
    """Of the states beside all chunks."""
    lead, features = (batch, heads, plan.num_chunks(plan.length)), plan.num_features
    shapes = ((*lead, rows, features) for rows in (plan.value_width, _ROWS))
    return Kept(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


def scratch(plan: Plan, with_place: bool) -> State:
    """Room for a state in VMEM."""

    def room(*shape: int) -> Any:
        return pltpu.VMEM(shape, jnp.float32)

    features = plan.num_features
    place = Place(room(1, 1), room(1, 1)) if with_place else None
    return State(room(plan.value_width, features), room(features, 1), place)
