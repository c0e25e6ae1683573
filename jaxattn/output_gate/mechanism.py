"""A gate on the output of any mechanism."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.mechanism import (
    AttentionInputs,
    Gate,
    GateModule,
    LayerSizes,
    Mechanism,
    MechanismModule,
)
from jaxattn.core.parameters import parameter
from jaxattn.core.registry import GateRow, register_gate
from jaxattn.softmax.mechanism import Softmax


@dataclasses.dataclass(frozen=True)
class OutputGated(Gate):
    """Attention whose output is multiplied by sigmoid(W x) of the layer's input at the query.

    It lets a head say nothing, which a softmax over keys cannot, and comes after attention: it is no key bias.

    Attributes:
        inner: the mechanism whose output is gated.
        per: "head" for one gate a head, "channel" for one a channel of every head.

    Raises:
        ValueError: an unknown `per`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, OutputGated
        >>> attention = Attention(2, 8, mechanism=OutputGated(per="channel"), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)

    Reference: Qiu et al. 2025, "Gated attention for large language models", arXiv 2505.06708.
    """

    inner: Mechanism = Softmax()
    per: str = "head"

    def __post_init__(self):
        check_choice("per", self.per, ("head", "channel"))

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "OutputGatedModule":
        """The module: the gates' kernel, and the inner mechanism."""
        return OutputGatedModule(self, self.inner.build(sizes, rngs=rngs), sizes, rngs=rngs)


class OutputGatedModule(GateModule):
    """Reads the gates from the layer's input, or from the queries where the module was built without one."""

    def __init__(self, config: OutputGated, inner: MechanismModule, sizes: LayerSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, inner)
        channels = 1 if config.per == "head" else sizes.head_dim
        init = nnx.initializers.lecun_normal(in_axis=-3 if sizes.in_features else -2, out_axis=-1)
        if sizes.in_features is None:
            shape: tuple[int, ...] = (sizes.num_heads, sizes.head_dim, channels)
            axes: tuple[str | None, ...] = ("heads", "head_dim", None)
        else:
            shape, axes = (sizes.in_features, sizes.num_heads, channels), ("embed", "heads", "head_dim")
        self.kernel = parameter(init, rngs.params(), shape, axes, sizes.param_dtype)

    @property
    def takes(self) -> frozenset[str]:
        """What the inner mechanism takes."""
        return self.inner.takes

    def gate(self, inputs: Float[Array, "B T D"] | None, query: Array) -> Float[Array, "B T N V"]:
        """Sigmoid(W x) of every query's token, V = 1 for a gate a head.

        Raises:
            ValueError: no inputs, or inputs of other tokens than the queries'.
        """
        kernel = self.kernel[...]
        if self.sizes.in_features is None:
            logits = jnp.einsum("BTNH,NHV->BTNV", query, kernel, preferred_element_type=jnp.float32)
        else:
            if inputs is None or inputs.shape[1] != query.shape[1]:
                got = None if inputs is None else inputs.shape
                raise ValueError(
                    f"inputs must be the layer's input at the queries, (B, T, D) with T = {query.shape[1]}: the "
                    f"output gate reads it; got {got}."
                )
            logits = jnp.einsum("BTD,DNV->BTNV", inputs, kernel, preferred_element_type=jnp.float32)
        return jax.nn.sigmoid(logits)

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence."""
        out = self.inner(query, key, value, given)
        inputs = given.inputs if given.query_inputs is None else given.query_inputs
        return (out * self.gate(inputs, query)).astype(out.dtype)

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """The inner state."""
        return self.inner.init_state(batch, max_length, dtype, gated=gated)

    def step(
        self, state: Any, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens."""
        state, out = self.inner.step(state, query, key, value, given)
        return state, (out * self.gate(given.inputs, query)).astype(out.dtype)


register_gate(
    GateRow(
        name="outgate",
        syntax="+outgate[=head|channel]",
        help="the output of every head times a sigmoid of the layer's input",
        mechanism=OutputGated,
        wrap=lambda inner, per="head", *, allow_leak=False: OutputGated(inner, per),
        spell=lambda mechanism: (mechanism.per,),
    )
)
