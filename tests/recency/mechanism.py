"""A mechanism outside the package: softmax with a learned bias towards recent keys, as CONTRIBUTING.md adds it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.nn import (
    AttentionInputs,
    LayerSizes,
    Mechanism,
    MechanismModule,
    MechanismRow,
    Softmax,
    UndecayedParam,
    axis_names,
    register_mechanism,
)


@dataclasses.dataclass(frozen=True)
class Recency(Mechanism):
    """softmax(s q_i·k_j − rate (i − j)) v; since i is the same for a whole row, the bias of key j is rate · j.

    Attributes:
        rate: where the learned rates start, in nats a token.
    """

    rate: float = 0.1

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "RecencyModule":
        """The module: a rate for every head."""
        return RecencyModule(self, sizes, rngs=rngs)


class RecencyModule(MechanismModule):
    """Adds the bias of the keys and calls softmax attention."""

    def __init__(self, config: Recency, sizes: LayerSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes)
        self.inner = Softmax().build(sizes, rngs=rngs)
        self.rate = UndecayedParam(
            jnp.full((sizes.num_heads,), config.rate, sizes.param_dtype), **axis_names("heads")
        )

    @property
    def takes(self) -> frozenset[str]:
        """What softmax takes."""
        return self.inner.takes

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence."""
        return self.inner(query, key, value, given.add_key_bias(self._bias(jnp.arange(key.shape[1])[None])))

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """The cache of softmax, and the position of the next token."""
        return {
            "inner": self.inner.init_state(batch, max_length, dtype, gated=True),
            "position": jnp.zeros((batch,), jnp.int32),
        }

    def step(self, state, query, key, value, given) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to all so far."""
        position = state["position"]
        bias = self._bias(position[:, None] + jnp.arange(key.shape[1]))
        inner, out = self.inner.step(state["inner"], query, key, value, given.add_key_bias(bias))
        return {"inner": inner, "position": given.advance(position, key.shape[1])}, out

    def _bias(self, positions: Array) -> Float[Array, "#B S N"]:
        return positions[..., None] * self.rate[...]


def _parse(rate: str = "0.1") -> Recency:
    return Recency(float(rate))


register_mechanism(
    MechanismRow(
        name="recency",
        syntax="recency[:RATE]",
        help="softmax with a learned bias of RATE (0.1) nats a token towards recent keys",
        mechanism=Recency,
        parse=_parse,
        spell=lambda mechanism: (f"{mechanism.rate:g}",),
    )
)
