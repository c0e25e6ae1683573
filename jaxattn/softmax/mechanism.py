"""Softmax attention as a mechanism."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Flops, Mechanism, MechanismModule
from jaxattn.core.registry import MechanismRow, register_mechanism
from jaxattn.softmax.attention import IMPLEMENTATIONS, dot_product_attention
from jaxattn.softmax.cache import dot_product_attention_init_state, dot_product_attention_step

BACKENDS = tuple(name for name in IMPLEMENTATIONS if name)


@dataclasses.dataclass(frozen=True)
class Softmax(Mechanism):
    """softmax(s q·k) v, on the fastest kernel of the platform.

    Attributes:
        implementation: a backend of `jaxattn.dot_product_attention`; None chooses by platform and length.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, Softmax
        >>> attention = Attention(2, 8, mechanism=Softmax(implementation="blockwise"), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)
    """

    implementation: str | None = None

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "SoftmaxModule":
        """The module; it has no parameters."""
        return SoftmaxModule(sizes, self.implementation)

    def flops(self, length: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> Flops:
        """Scores and weighted values, 4 N T² H; the gradient has a product each for dv, the weights, dq and dk."""
        forward = 4 * num_heads * length**2 * head_dim
        return Flops(forward, 2 * forward)


class SoftmaxModule(MechanismModule):
    """Calls `dot_product_attention`; holds no parameters."""

    def __init__(self, sizes: LayerSizes, implementation: str | None):
        super().__init__(sizes)
        self.implementation = implementation

    @property
    def takes(self) -> frozenset[str]:
        """Everything but a tree."""
        return frozenset({"bias", "pair_mask", "segment_ids"})

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence."""
        return dot_product_attention(
            query,
            key,
            value,
            key_bias=given.padding_key_bias(),
            mask=given.mask,
            bias=given.bias,
            segment_ids=given.segment_ids,
            is_causal=given.is_causal,
            implementation=self.implementation,
        )

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """An empty key-value cache."""
        return dot_product_attention_init_state(
            batch,
            max_length,
            self.sizes.kv_heads,
            self.sizes.head_dim,
            num_heads=self.sizes.num_heads if gated else None,
            dtype=dtype,
        )

    def step(
        self, state, query, key, value, *, inputs=None, key_bias=None
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to the cache and to each other."""
        return dot_product_attention_step(state, query, key, value, key_bias=key_bias)


register_mechanism(
    MechanismRow(
        name="softmax",
        syntax="softmax",
        help="softmax over all tokens",
        mechanism=Softmax,
        parse=lambda: Softmax(),
        spell=lambda mechanism: (),
        implementations=BACKENDS,
    )
)
