"""A mechanism around another that keeps what it attends over."""

from typing import Any, NamedTuple, NoReturn

from flax import nnx
from jaxtyping import Array, Float

from jaxattn.nn import AttentionInputs, GateModule, MechanismModule


class Tensors(NamedTuple):
    """The inputs of one layer's attention."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K V"]


class Recorder(GateModule):
    """Forwards calls to a mechanism and keeps the queries, keys and values of the last one as `seen`."""

    def __init__(self, inner: MechanismModule):
        super().__init__(inner.sizes, inner)
        self.seen: Any = nnx.data(None)

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Keeps the inputs and attends."""
        self.seen = nnx.data(Tensors(query, key, value))
        return self.inner(query, key, value, given)

    def init_state(self, *args: Any, **options: Any) -> NoReturn:
        """Raises: a recorder does not decode."""
        raise NotImplementedError("a recorder does not decode.")

    def step(self, *args: Any, **options: Any) -> NoReturn:
        """Raises: a recorder does not decode."""
        raise NotImplementedError("a recorder does not decode.")
