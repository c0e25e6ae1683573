"""ALiBi and the forgetting gate as mechanisms around any other."""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jaxattn.core.mechanism import (
    AttentionInputs,
    Gate,
    GateModule,
    LayerSizes,
    Mechanism,
    MechanismModule,
)
from jaxattn.core.parameters import UndecayedParam, parameter
from jaxattn.core.registry import GateRow, register_gate
from jaxattn.core.sequence import exclusive_scan
from jaxattn.recency.alibi import alibi_key_bias, alibi_slopes
from jaxattn.recency.forget import forget_key_bias_init_state, forget_key_bias_step
from jaxattn.softmax.mechanism import Softmax


class RecencyBiasedModule(GateModule):
    """Computes key biases from left to right and calls the inner mechanism with them.

    Args:
        sizes: of the layer.
        inner: the module inside.

    Raises:
        ValueError: the inner mechanism has sinks, or does not normalise.
    """

    def __init__(self, sizes: LayerSizes, inner: MechanismModule):
        if inner.feels_common_bias:
            raise ValueError(
                f"inner of {type(self).__name__.removesuffix('Module')} must have weights that add up to 1, without "
                "sinks: a bias by distance is a key bias only up to a number a query, which would not cancel; got "
                f"{type(inner).__name__.removesuffix('Module')}."
            )
        super().__init__(sizes, inner)

    @property
    def takes(self) -> frozenset[str]:
        """What the inner mechanism takes, but no context, whose tokens have no distance to the queries."""
        return self.inner.takes - {"context"}

    @abc.abstractmethod
    def init_bias(self, batch: int) -> Any:
        """The state of the biases before the first token."""

    @abc.abstractmethod
    def step_bias(
        self, state: Any, inputs: Array | None, key: Array, token_mask: Array | None
    ) -> tuple[Any, Float[Array, "B T N"]]:
        """The new state and the biases of T new tokens; where they are decoded, real ones come first in every row."""

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence.

        Raises:
            ValueError: the call is not causal.
        """
        if not (given.is_causal or self.inner.is_causal):
            raise ValueError(
                f"is_causal must be True with {type(self).__name__}: a bias by distance is a key bias only where no "
                "key lies behind its query; got False."
            )
        start = self.init_bias(key.shape[0])
        if given.axis_name is not None:
            start = self.bias_before(start, key, given, given.axis_name)
        _, bias = self.step_bias(start, given.inputs, key, given.token_mask)
        return self.inner(query, key, value, given.add_key_bias(bias))

    def bias_before(self, start: Any, key: Array, given: AttentionInputs, axis_name: str) -> Any:
        """The state after the tokens of earlier devices, of a sequence that is cut among them."""
        own, _ = self.step_bias(start, given.inputs, key, given.token_mask)
        return exclusive_scan(jnp.add, start, own, axis_name)

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """The inner state and that of the biases, which differ from head to head."""
        inner = self.inner.init_state(batch, max_length, dtype, gated=True)
        return {"inner": inner, "bias": self.init_bias(batch)}

    def step(
        self, state: Any, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens, whose biases depend on the tokens so far."""
        bias_state, bias = self.step_bias(state["bias"], given.inputs, key, given.token_mask)
        inner_state, out = self.inner.step(state["inner"], query, key, value, given.add_key_bias(bias))
        return {"inner": inner_state, "bias": bias_state}, out


@dataclasses.dataclass(frozen=True)
class Alibi(Gate):
    """Attention with linear biases: −m (i − j) added to every score, with a fixed slope m a head. Causal only.

    Attributes:
        inner: the mechanism whose weights are biased.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Alibi, Attention
        >>> attention = Attention(2, 8, mechanism=Alibi(), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)

    Reference: Press et al. 2022, "Train short, test long".
    """

    inner: Mechanism = Softmax()

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "AlibiModule":
        """The module; the slopes are not learned."""
        return AlibiModule(sizes, self.inner.build(sizes, rngs=rngs))


class AlibiModule(RecencyBiasedModule):
    """Adds slope times position."""

    def init_bias(self, batch: int) -> Array:
        """The number of tokens so far."""
        return jnp.zeros((batch,), jnp.int32)

    def bias_before(self, start: Array, key: Array, given: AttentionInputs, axis_name: str) -> Array:
        """The number of tokens there, padding included."""
        return start + lax.axis_index(axis_name) * key.shape[1]

    def step_bias(
        self, state: Array, inputs: Array | None, key: Array, token_mask: Array | None
    ) -> tuple[Array, Float[Array, "B T N"]]:
        """Biases of the positions that follow."""
        positions = state[:, None] + jnp.arange(key.shape[1], dtype=state.dtype)
        count = key.shape[1] if token_mask is None else token_mask.sum(axis=1, dtype=state.dtype)
        return state + count, alibi_key_bias(positions, alibi_slopes(self.sizes.num_heads))


@dataclasses.dataclass(frozen=True)
class Forgetting(Gate):
    """The forgetting gate: token l multiplies all weights of earlier keys by f_l = sigmoid(w·x_l + b). Causal only.

    Attributes:
        inner: the mechanism whose weights are gated.
        initial_bias: b at the start; 4 forgets 1.8 % a token. (The paper starts at 0, which halves at every token.)

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, Forgetting, RandomFeatures
        >>> mechanism = Forgetting(inner=RandomFeatures(num_features=16))  # random features that forget
        >>> attention = Attention(2, 8, mechanism=mechanism, rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)

    Reference: Lin et al. 2025, "Forgetting Transformer", arXiv 2503.02130.
    """

    inner: Mechanism = Softmax()
    initial_bias: float = 4.0

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "ForgettingModule":
        """The module: gate weights and offset of every head, and the inner mechanism."""
        return ForgettingModule(self, self.inner.build(sizes, rngs=rngs), sizes, rngs=rngs)


class ForgettingModule(RecencyBiasedModule):
    """Reads the gates from the layer's input, or from the keys where the module was built without one."""

    def __init__(self, config: Forgetting, inner: MechanismModule, sizes: LayerSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, inner)
        width, axis = (
            (sizes.head_dim, "head_dim") if sizes.in_features is None else (sizes.in_features, "embed")
        )
        heads, dtype = sizes.num_heads, sizes.param_dtype
        init = nnx.initializers.lecun_normal()
        self.kernel = parameter(init, rngs.params(), (width, heads), (axis, "heads"), dtype)
        init = nnx.initializers.constant(config.initial_bias)
        self.bias = parameter(init, rngs.params(), (heads,), ("heads",), dtype, UndecayedParam)

    def init_bias(self, batch: int) -> Array:
        """The sum of no decays."""
        return forget_key_bias_init_state(batch, self.sizes.num_heads)

    def step_bias(
        self, state: Array, inputs: Array | None, key: Array, token_mask: Array | None
    ) -> tuple[Array, Float[Array, "B T N"]]:
        """Biases from the gates of the new tokens."""
        logits = self.read_tokens(self.kernel[...], inputs, key) + self.bias[...]
        return forget_key_bias_step(state, logits, mask=token_mask)


register_gate(
    GateRow(
        name="alibi",
        syntax="+alibi",
        help="scores that fall linearly with distance, with a fixed slope a head (causal only)",
        mechanism=Alibi,
        wrap=lambda inner, *, allow_leak=False: Alibi(inner),
        spell=lambda mechanism: (),
    )
)
register_gate(
    GateRow(
        name="forget",
        syntax="+forget",
        help="a learned decay by every later token (causal only)",
        mechanism=Forgetting,
        wrap=lambda inner, *, allow_leak=False: Forgetting(inner),
        spell=lambda mechanism: (),
    )
)
