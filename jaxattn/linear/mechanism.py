"""Linear attention on simple positive features as a mechanism."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Flops, Mechanism, MechanismModule
from jaxattn.core.registry import MechanismRow, register_mechanism
from jaxattn.linear.attention import linear_attention
from jaxattn.linear.implementation import IMPLEMENTATIONS
from jaxattn.linear.state import linear_attention_init_state, linear_attention_step

FEATURES: dict[str, Callable[[Array], Array]] = {
    "elu": lambda x: jax.nn.elu(x) + 1,
    "identity": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class Linear(Mechanism):
    """Attention with weights φ(q)·φ(k): linear in length, a state of constant size, no estimate of softmax.

    Attributes:
        features: φ, "elu" for elu(x) + 1, which is positive, or "identity", for projections that are features
            already. Their products may have any sign, and the weights of a query may add up to nearly 0.
        chunk_size: tokens a chunk of the causal form; None chooses by platform.
        implementation: "xla", "pallas" (TPU), "mosaic_gpu" (NVIDIA, experimental) or None, as in
            `jaxattn.linear_attention`.

    Raises:
        ValueError: an unknown name, or a chunk size below 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, Linear
        >>> attention = Attention(2, 8, mechanism=Linear("elu"), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)

    Reference: Katharopoulos et al. 2020, "Transformers are RNNs", equation 7.
    """

    features: str = "elu"
    chunk_size: int | None = None
    implementation: str | None = None

    def __post_init__(self):
        check_choice("features", self.features, FEATURES)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be None or at least 1; got {self.chunk_size}.")

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "LinearModule":
        """The module; it has no parameters."""
        return LinearModule(self, sizes)

    def flops(self, length: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> Flops:
        """Σ_j φ_k v' and φ_q·(that), 2 T (N + K) H²; pairs inside a chunk of the causal form are not counted."""
        forward = 2 * length * (num_heads + (num_kv_heads or num_heads)) * head_dim**2
        return Flops(forward, 2 * forward)


class LinearModule(MechanismModule):
    """Calls `linear_attention`; holds no parameters."""

    def __init__(self, config: Linear, sizes: LayerSizes):
        super().__init__(sizes)
        self.features = config.features
        self.chunk_size = config.chunk_size
        self.implementation = config.implementation

    @property
    def takes(self) -> frozenset[str]:
        """Segments, a context, and tokens cut among devices."""
        return super().takes | {"axis_name"}

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence; `mask` must be the same for all queries."""
        phi = FEATURES[self.features]
        return linear_attention(
            phi(query),
            phi(key),
            value,
            key_bias=given.folded_key_bias(key.shape[1]),
            segment_ids=given.segment_ids,
            is_causal=given.is_causal,
            chunk_size=self.chunk_size,
            implementation=self.implementation,
            axis_name=given.axis_name,
        )

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """Sums over the keys so far: the size does not depend on `max_length`."""
        sizes = self.sizes
        num_heads = sizes.num_heads if gated else None
        return linear_attention_init_state(batch, sizes.kv_heads, sizes.head_dim, num_heads=num_heads)

    def step(
        self, state: Any, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to all so far and to each other."""
        phi = FEATURES[self.features]
        return linear_attention_step(
            state,
            phi(query),
            phi(key),
            value,
            key_bias=given.key_bias,
            query_seq_lengths=given.num_new_tokens(),
            chunk_size=self.chunk_size,
        )


register_mechanism(
    MechanismRow(
        name="linear",
        syntax="linear[:elu|identity]",
        help="linear attention on elu(x) + 1 of queries and keys (elu), or on themselves (identity)",
        mechanism=Linear,
        parse=lambda features="elu": Linear(features),
        spell=lambda mechanism: (mechanism.features,),
        implementations=("linear", *IMPLEMENTATIONS[2:]),
    )
)
