"""The queries of one chunk and all that they see, keys and states, inside a kernel: their means and gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxattn.core.pallas.products import nn, nt, tn
from jaxattn.linear.pallas.factors import Seen
from jaxattn.linear.pallas.reading import Keys
from jaxattn.linear.pallas.states import State
from jaxattn.linear.sums import inverse_of


class Queries(NamedTuple):
    """Those of one group: phi (F, C), their features, and of_out (V, C), the cotangents of their outputs."""

    phi: Array
    of_out: Array


class Products(NamedTuple):
    """Of the queries of one group.

    weights (C, C): of key j (row) for query i (column); near (C, C): of values and cotangents of outputs; far (F, C)
    for every state: of its total and these cotangents.
    """

    weights: Array
    near: Array
    far: Sequence[Array]


class Divisor(NamedTuple):
    """Of the sums of every query: inverse (1, C) of the sum of its weights; delta (1, C): its cotangent times it."""

    inverse: Array
    delta: Array


class Chunk(NamedTuple):
    """The keys of the chunk, the states that its queries see besides them, and by which factors."""

    keys: Keys
    states: Sequence[State]
    seen: Seen

    def attend(self, phi: Array) -> Array:
        """(V, C) of queries (F, C)."""
        value, narrow = self.keys.value, self.keys.value.dtype
        weights = self._weights(phi)
        sums, whole = nn(value, weights.astype(narrow)), weights.sum(axis=0, keepdims=True)
        for state, factor in zip(self.states, self.seen.states, strict=True):
            sums += nn(state.total.astype(narrow), phi.astype(narrow)) * factor
            whole += (state.weight * phi).sum(axis=0, keepdims=True) * factor
        return sums * inverse_of(whole)

    def multiply(self, queries: Queries, with_states: bool) -> Products:
        """The products that the gradient begins with."""
        narrow, of_out = self.keys.value.dtype, queries.of_out
        far = [tn(state.total.astype(narrow), of_out) for state in self.states] if with_states else []
        return Products(self._weights(queries.phi), tn(self.keys.value, of_out), far)

    def divide(self, queries: Queries, products: Products) -> Divisor:
        """With delta from the very products that it has to cancel: that of `near + delta` and `far` vanishes."""
        phi, weights = queries.phi, products.weights
        whole = weights.sum(axis=0, keepdims=True)
        mean = (weights * products.near).sum(axis=0, keepdims=True)
        for state, factor, far in zip(self.states, self.seen.states, products.far, strict=True):
            whole += (state.weight * phi).sum(axis=0, keepdims=True) * factor
            mean += (phi * far).sum(axis=0, keepdims=True) * factor
        inverse = inverse_of(whole)
        return Divisor(inverse, -inverse * mean)

    def of_pairs(self, products: Products, divisor: Divisor) -> Array:
        """(C, C) cotangents of the products of features."""
        of = (products.near + divisor.delta) * (self.seen.within * divisor.inverse)
        return of.astype(self.keys.value.dtype)

    def of_queries(self, products: Products, divisor: Divisor, of_pairs: Array) -> Array:
        """(F, C) cotangents of the features of queries."""
        of_phi = nn(self.keys.phi.astype(of_pairs.dtype), of_pairs)
        for state, factor, far in zip(self.states, self.seen.states, products.far, strict=True):
            of_phi += (far + divisor.delta * state.weight) * (factor * divisor.inverse)
        return of_phi

    def of_keys(
        self, queries: Queries, products: Products, divisor: Divisor, of_pairs: Array
    ) -> tuple[Array, Array]:
        """Cotangents (F, C) of the features of keys and (V, C) of the values."""
        narrow = of_pairs.dtype
        shares = (products.weights * divisor.inverse).astype(narrow)
        return nt(queries.phi.astype(narrow), of_pairs), nt(queries.of_out, shares)

    def of_state(self, of_state: State, queries: Queries, divisor: Divisor, index: int) -> State:
        """The cotangent of a state with what comes from these queries added."""
        asked = (queries.phi * (self.seen.states[index] * divisor.inverse)).astype(self.keys.value.dtype)
        return State(
            of_state.total + nt(queries.of_out, asked),
            of_state.weight + (asked.astype(jnp.float32) * divisor.delta).sum(axis=1, keepdims=True),
        )

    def _weights(self, phi: Array) -> Array:
        narrow = self.keys.value.dtype
        return tn(self.keys.phi.astype(narrow), phi.astype(narrow)) * self.seen.within
