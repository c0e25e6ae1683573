"""Linear attention without normalisation, with decaying sums, as a mechanism."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Flops, Mechanism, MechanismModule
from jaxattn.core.parameters import UndecayedParam, parameter
from jaxattn.core.registry import MechanismRow, register_mechanism
from jaxattn.linear import linear_attention, linear_attention_init_state, linear_attention_step

DECAYS = ("fixed", "gated")
INITIAL_BIAS = 4.0


@dataclasses.dataclass(frozen=True)
class Retention(Mechanism):
    """Sums of values weighted by s q·k that decay from token to token, normalised over the channels of a head.

    out_i = rms(Σ_{j<=i} exp(Σ_{j<r<=i} g_r) (s q_i·k_j) v_j), where rms divides by the root mean square of a head.
    Causal only. Linear in length, with a state of constant size.

    Attributes:
        decay: "fixed" for RetNet's e^g = 1 − 2^(−5 − h) of head h = 0, 1, …; "gated" for a scalar gate
            e^g = sigmoid(w·x + b) a token and head, with b = 4 at the start, as in gated retention and the scalar
            forms of GLA and Mamba-2.
        chunk_size: tokens a chunk; None chooses by platform.

    Raises:
        ValueError: an unknown decay, or a chunk size below 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, Retention
        >>> attention = Attention(2, 8, mechanism=Retention("gated"), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)

    Reference: Sun et al. 2023, "Retentive network", arXiv 2307.08621; gated retention is in Sun et al. 2024, "You
    only cache once", arXiv 2405.05254, section 3.1.
    """

    decay: str = "fixed"
    chunk_size: int | None = None

    def __post_init__(self):
        check_choice("decay", self.decay, DECAYS)
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be None or at least 1; got {self.chunk_size}.")

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "RetentionModule":
        """The module; its only parameters are those of the gate."""
        return RetentionModule(self, sizes, rngs=rngs)

    def flops(self, length: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> Flops:
        """Σ_j k v' and q·(that) of every query head, 4 T N H²; pairs inside a chunk are not counted."""
        forward = 4 * length * num_heads * head_dim**2
        return Flops(forward, 2 * forward)


class RetentionModule(MechanismModule):
    """Reads the gates from the layer's input, or from the keys where the module was built without one."""

    def __init__(self, config: Retention, sizes: LayerSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes)
        self.chunk_size = config.chunk_size
        self.gated = config.decay == "gated"
        if self.gated:
            width, axis = (
                (sizes.head_dim, "head_dim") if sizes.in_features is None else (sizes.in_features, "embed")
            )
            heads, dtype = sizes.num_heads, sizes.param_dtype
            init = nnx.initializers.lecun_normal()
            self.kernel = parameter(init, rngs.params(), (width, heads), (axis, "heads"), dtype)
            init = nnx.initializers.constant(INITIAL_BIAS)
            self.bias = parameter(init, rngs.params(), (heads,), ("heads",), dtype, UndecayedParam)

    @property
    def takes(self) -> frozenset[str]:
        """Segments; a context has no tokens between a query and a key that could decay."""
        return frozenset({"segment_ids", "axis_name"})

    @property
    def feels_common_bias(self) -> bool:
        """True: nothing is divided by the sum of the weights."""
        return True

    def log_decay(self, key: Array, given: AttentionInputs) -> Float[Array, "#B T N"]:
        """g of every token and head; padding decays nothing."""
        if self.gated:
            logits = self.read_tokens(self.kernel[...], given.inputs, key) + self.bias[...]
            decay = jax.nn.log_sigmoid(logits.astype(jnp.float32))
        else:
            heads = np.arange(self.sizes.num_heads)
            fixed = jnp.asarray(np.log1p(-(2.0 ** (-5 - heads))), jnp.float32)
            decay = jnp.broadcast_to(fixed, (1, key.shape[1], heads.size))
        return decay if given.token_mask is None else jnp.where(given.token_mask[..., None], decay, 0)

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence; `mask` must be the same for all queries.

        Raises:
            ValueError: the call is not causal.
        """
        if not given.is_causal:
            raise ValueError(
                "is_causal must be True with Retention: sums decay from left to right; got False."
            )
        out = linear_attention(
            self._scaled(query),
            key,
            value,
            key_bias=given.folded_key_bias(key.shape[1]),
            segment_ids=given.segment_ids,
            is_causal=True,
            axis_name=given.axis_name,
            **self._options(key, given),
        )
        return _rms_normalised(out)

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """Sums over the keys so far, one set a query head."""
        sizes = self.sizes
        return linear_attention_init_state(batch, sizes.kv_heads, sizes.head_dim, num_heads=sizes.num_heads)

    def step(
        self, state: Any, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to all so far and to each other."""
        state, out = linear_attention_step(
            state,
            self._scaled(query),
            key,
            value,
            key_bias=given.key_bias,
            query_seq_lengths=given.num_new_tokens(),
            **self._options(key, given),
        )
        return state, _rms_normalised(out)

    def _scaled(self, query: Array) -> Array:
        return query * self.sizes.head_dim**-0.5

    def _options(self, key: Array, given: AttentionInputs) -> dict[str, Any]:
        return {"log_decay": self.log_decay(key, given), "normalize": False, "chunk_size": self.chunk_size}


def _rms_normalised(x: Array) -> Array:
    """Every head divided by the root mean square of its channels, without a gain."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


register_mechanism(
    MechanismRow(
        name="retention",
        syntax="retention[:fixed|gated]",
        help="linear attention without normalisation whose sums decay, at fixed rates or by a gate (causal only)",
        mechanism=Retention,
        parse=lambda decay="fixed": Retention(decay),
        spell=lambda mechanism: (mechanism.decay,),
        implementations=("linear",),
    )
)
