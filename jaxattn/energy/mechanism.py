"""The energy gate as a mechanism around any other."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Gate, GateModule, Mechanism, MechanismModule
from jaxattn.core.parameters import UndecayedParam, parameter
from jaxattn.core.registry import GateRow, register_gate
from jaxattn.energy import (
    energy_gate,
    energy_gate_init_state,
    energy_gate_step,
    energy_gated_attention,
    energy_gated_attention_init_state,
    energy_gated_attention_step,
)
from jaxattn.energy.gate import is_causal_mask
from jaxattn.softmax.mechanism import Softmax, SoftmaxModule

NORMALIZATIONS = ("running", "sequence", "prefix", None)


@dataclasses.dataclass(frozen=True)
class EnergyGated(Gate):
    """Attention weights multiplied by a learned gate of the key token, and renormalised.

    e_j = w·x_j per head, g_j = sigmoid(alpha (z_j − tau)) with z the normalised energy, and
    A_ij = p_ij g_j / sum_j' p_ij' g_j'. The published energy also has an offset b; it cancels in z (and without
    normalisation tau takes its place), so there is none here.

    Attributes:
        inner: the mechanism whose weights p are gated.
        normalization: where the statistics of z come from: "running" (tokens up to the key; causal), "prefix"
            (tokens up to the query; causal), None (no normalisation; causal) or "sequence" (all tokens, as
            published; reads the future). "prefix" depends on the query as well, so its `inner` must be `Softmax`.
        allow_leak: permits "sequence" under a causal mask, for reproducing the paper. Without it, such a call raises
            where the mask is known to be causal: with `is_causal`, or with a causal `mask` that is not traced.

    Raises:
        ValueError: an unknown normalisation, or "prefix" around anything but `Softmax`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, EnergyGated
        >>> attention = Attention(2, 8, mechanism=EnergyGated(normalization="prefix"), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)

    Reference: arXiv 2605.21842, energy-gated attention.
    """

    inner: Mechanism = Softmax()
    normalization: str | None = "running"
    allow_leak: bool = False

    def __post_init__(self):
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        if self.normalization == "prefix" and not isinstance(self.inner, Softmax):
            raise ValueError(
                "normalization 'prefix' gates each (query, key) pair, which only inner=Softmax() can do; "
                f"got inner={self.inner!r}. 'running' and None work with every mechanism."
            )

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "EnergyGatedModule":
        """The module: energy weights, alpha and tau for every head, and the inner mechanism."""
        return EnergyGatedModule(self, self.inner.build(sizes, rngs=rngs), sizes, rngs=rngs)


class EnergyGatedModule(GateModule):
    """Computes the energies, turns them into a key bias and calls the inner mechanism with it."""

    def __init__(self, config: EnergyGated, inner: MechanismModule, sizes: LayerSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, inner)
        self.normalization = config.normalization
        self.allow_leak = config.allow_leak
        width, axis = (sizes.head_dim, "head_dim")
        if sizes.in_features is not None:
            width, axis = (sizes.in_features, "embed")
        heads = sizes.num_heads
        self.kernel = parameter(
            nnx.initializers.lecun_normal(),
            rngs.params(),
            (width, heads),
            (axis, "heads"),
            sizes.param_dtype,
        )

        def gain(value: float) -> nnx.Param:
            init = nnx.initializers.constant(value)
            return parameter(init, rngs.params(), (heads,), ("heads",), sizes.param_dtype, UndecayedParam)

        self.alpha, self.tau = gain(2.0), gain(0.0)

    @property
    def takes(self) -> frozenset[str]:
        """What the inner mechanism takes; prefixes that end at a query are not those of a context."""
        without = {"prefix": {"context", "axis_name"}, "sequence": {"axis_name"}}
        return self.inner.takes - without.get(self.normalization or "", set())

    def energy(
        self, inputs: Float[Array, "B S D"] | None, key: Float[Array, "B S K H"]
    ) -> Float[Array, "B S N"]:
        """e = w·x per head, from the layer input, or from the keys where the module was built without one."""
        return self.read_tokens(self.kernel[...], inputs, key)

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence."""
        energy = self.energy(given.inputs, key)
        if self.normalization == "prefix" and isinstance(self.inner, SoftmaxModule):
            return energy_gated_attention(
                query,
                key,
                value,
                energy,
                **self._gate(),
                token_mask=given.token_mask,
                mask=given.mask,
                bias=given.bias,
                key_bias=given.key_bias,
                segment_ids=given.segment_ids,
                is_causal=given.is_causal,
                implementation=self.inner.implementation,
                **self.inner.options(),
            )
        gate = energy_gate(
            energy,
            **self._gate(),
            mask=_kept(given.padding_key_bias(), energy),
            segment_ids=given.segment_ids,
            is_causal=given.is_causal or self.inner.is_causal or is_causal_mask(given.mask),
            allow_leak=self.allow_leak,
            axis_name=given.axis_name,
        )
        return self.inner(query, key, value, given.add_key_bias(gate))

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """The inner state and the statistics of the energies.

        "sequence" decodes as "prefix" does: the later tokens that it was trained with do not exist yet.
        """
        sizes = self.sizes
        if self.normalization in ("running", None):
            inner = self.inner.init_state(batch, max_length, dtype, gated=True)
            return {"inner": inner, "gate": energy_gate_init_state(batch, sizes.num_heads)}
        if not isinstance(self.inner, SoftmaxModule):
            raise ValueError("normalization 'sequence' can be decoded around inner=Softmax() only.")
        return energy_gated_attention_init_state(
            batch, max_length, sizes.kv_heads, sizes.head_dim, num_heads=sizes.num_heads, dtype=dtype
        )

    def step(
        self, state: Any, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens, whose gates are fixed by the energies so far."""
        energy = self.energy(given.inputs, key)
        if self.normalization in ("running", None):
            gate_state, gate = energy_gate_step(
                state["gate"], energy, **self._gate(), mask=_kept(given.padding_key_bias(), energy)
            )
            inner_state, out = self.inner.step(state["inner"], query, key, value, given.add_key_bias(gate))
            return {"inner": inner_state, "gate": gate_state}, out
        # The state is this mechanism's own: `init_state` has seen that the inner one is softmax.
        assert isinstance(self.inner, SoftmaxModule)
        return energy_gated_attention_step(
            state,
            query,
            key,
            value,
            energy,
            **self._gate(),
            key_bias=given.key_bias,
            query_seq_lengths=given.num_new_tokens(),
            **self.inner.options(),
        )

    def _gate(self) -> dict[str, Any]:
        return {"alpha": self.alpha[...], "tau": self.tau[...], "normalization": self.normalization}


def _kept(key_bias: Array | None, energy: Array) -> Array | None:
    """(B, S, N), False where a key is removed and so left out of the statistics."""
    return None if key_bias is None else jnp.broadcast_to(key_bias != -jnp.inf, energy.shape)


_OPTIONS = {"running": "running", "prefix": "prefix", "none": None, "sequence": "sequence"}


def _wrap(inner: Mechanism, option: str = "running", *, allow_leak: bool = False) -> EnergyGated:
    if option not in _OPTIONS:
        raise ValueError(f"the option of +gate must be one of {', '.join(_OPTIONS)}; got {option!r}")
    return EnergyGated(inner=inner, normalization=_OPTIONS[option], allow_leak=allow_leak)


register_gate(
    GateRow(
        name="gate",
        syntax="+gate[=running|prefix|none|sequence]",
        help="a learned gate of each key token; statistics of its energies from tokens up to the key (running)",
        mechanism=EnergyGated,
        wrap=_wrap,
        spell=lambda mechanism: (mechanism.normalization or "none",),
    )
)
