"""Cross-correlation scores as a mechanism."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.mechanism import Mechanism, MechanismModule
from jaxattn.core.parameters import parameter
from jaxattn.lags.attention import (
    cross_correlation_attention,
    cross_correlation_attention_init_state,
    cross_correlation_attention_step,
)


@dataclasses.dataclass(frozen=True)
class CrossCorrelation(Mechanism):
    """Scores that average q·k over small shifts of either side (CONV-L), all shifts into the past.

    score_ij = s sum_{l≥0} w_l q_i·k_{j−l} + s sum_{l<0} w_l q_{i−|l|}·k_j, w = softmax over 2L + 1 lags, per head.

    Attributes:
        lags: the largest shift L, in tokens.
        implementation: a backend of `jaxattn.dot_product_attention`; None chooses by platform and length.

    Raises:
        ValueError: lags below 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, CrossCorrelation
        >>> attention = Attention(2, 8, mechanism=CrossCorrelation(lags=3), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)

    Reference: arXiv 2605.21842, the CONV-L ablation; the sign of the shifts differs, see the kernel.
    """

    lags: int = 8
    implementation: str | None = None

    def __post_init__(self):
        if self.lags < 0:
            raise ValueError(f"lags must be at least 0; got {self.lags}.")

    def build(
        self,
        num_heads: int,
        head_dim: int,
        in_features: int | None,
        *,
        num_kv_heads: int | None = None,
        rngs: nnx.Rngs,
    ) -> "CrossCorrelationModule":
        """The module: the logits of the lags for every head."""
        return CrossCorrelationModule(self, num_heads, head_dim, rngs=rngs)


class CrossCorrelationModule(MechanismModule):
    """Holds the lag logits; at the start all lags weigh the same."""

    def __init__(self, config: CrossCorrelation, num_heads: int, head_dim: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.lags = config.lags
        self.implementation = config.implementation
        self.lag_logits = parameter(
            nnx.initializers.zeros, rngs.params(), (num_heads, 2 * config.lags + 1), ("heads", None)
        )

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
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence."""
        return cross_correlation_attention(
            query,
            key,
            value,
            self.lag_logits[...],
            token_mask=token_mask,
            mask=mask,
            key_bias=key_bias,
            segment_ids=segment_ids,
            is_causal=is_causal,
            implementation=self.implementation,
        )

    def init_state(self, batch: int, max_length: int, num_kv_heads: int, dtype: Any) -> Any:
        """An empty cache and the last L queries and keys, zeros before the first token."""
        return cross_correlation_attention_init_state(
            batch,
            max_length,
            num_kv_heads,
            self.head_dim,
            self.lag_logits[...],
            num_heads=self.num_heads,
            dtype=dtype,
        )

    def step(
        self, state, query, key, value, *, inputs=None, key_bias=None
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens."""
        return cross_correlation_attention_step(
            state, query, key, value, self.lag_logits[...], key_bias=key_bias
        )
