"""Softmax attention as a mechanism."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.mechanism import Mechanism, MechanismModule
from jaxattn.core.padding import padding_key_bias
from jaxattn.softmax.attention import dot_product_attention
from jaxattn.softmax.cache import dot_product_attention_init_state, dot_product_attention_step


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

    def build(
        self,
        num_heads: int,
        head_dim: int,
        in_features: int | None,
        *,
        num_kv_heads: int | None = None,
        rngs: nnx.Rngs,
    ) -> "SoftmaxModule":
        """The module; it has no parameters."""
        return SoftmaxModule(num_heads, head_dim, self.implementation)


class SoftmaxModule(MechanismModule):
    """Calls `dot_product_attention`; holds no parameters."""

    def __init__(self, num_heads: int, head_dim: int, implementation: str | None):
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.implementation = implementation

    @property
    def takes_bias(self) -> bool:
        """True."""
        return True

    @property
    def takes_pair_mask(self) -> bool:
        """True."""
        return True

    def __call__(
        self,
        query,
        key,
        value,
        *,
        inputs=None,
        key_bias=None,
        token_mask=None,
        mask=None,
        segment_ids=None,
        is_causal=False,
        bias=None,
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence; `bias` is added to the scores."""
        return dot_product_attention(
            query,
            key,
            value,
            key_bias=padding_key_bias(token_mask, key_bias),
            mask=mask,
            bias=bias,
            segment_ids=segment_ids,
            is_causal=is_causal,
            implementation=self.implementation,
        )

    def init_state(self, batch: int, max_length: int, num_kv_heads: int, dtype: Any) -> Any:
        """An empty key-value cache."""
        return dot_product_attention_init_state(
            batch, max_length, num_kv_heads, self.head_dim, num_heads=self.num_heads, dtype=dtype
        )

    def step(
        self, state, query, key, value, *, inputs=None, key_bias=None
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to the cache and to each other."""
        return dot_product_attention_step(state, query, key, value, key_bias=key_bias)
