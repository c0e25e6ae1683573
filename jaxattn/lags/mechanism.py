"""Cross-correlation scores as a mechanism."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.decode import step_on_parts
from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Flops, Mechanism, MechanismModule
from jaxattn.core.parameters import UndecayedParam, parameter
from jaxattn.core.registry import MechanismRow, register_mechanism, whole_number
from jaxattn.lags import (
    cross_correlation_attention,
    cross_correlation_attention_init_state,
    cross_correlation_attention_step,
)
from jaxattn.softmax.mechanism import BACKENDS


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

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "CrossCorrelationModule":
        """The module: the logits of the lags for every head."""
        return CrossCorrelationModule(self, sizes, rngs=rngs)

    def flops(self, length: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> Flops:
        """Scores of width 2H and weighted values, 6 N T² H; the gradient has two products for each."""
        forward = 6 * num_heads * length**2 * head_dim
        return Flops(forward, 2 * forward)


class CrossCorrelationModule(MechanismModule):
    """Holds the lag logits; at the start all lags weigh the same."""

    def __init__(self, config: CrossCorrelation, sizes: LayerSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes)
        self.lags = config.lags
        self.implementation = config.implementation
        self.lag_logits = parameter(
            nnx.initializers.zeros,
            rngs.params(),
            (sizes.num_heads, 2 * config.lags + 1),
            ("heads", None),
            sizes.param_dtype,
            UndecayedParam,
        )

    @property
    def reads_earlier_queries(self) -> bool:
        """True."""
        return True

    @property
    def takes(self) -> frozenset[str]:
        """Everything but a tree."""
        return frozenset({"bias", "pair_mask", "segment_ids", "context", "axis_name"})

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence."""
        query_mask = given.query_mask
        if query_mask is None and query.shape[1] == key.shape[1]:
            query_mask = given.token_mask
        return cross_correlation_attention(
            query,
            key,
            value,
            self.lag_logits[...],
            token_mask=(query_mask, given.token_mask),
            mask=given.mask,
            bias=given.bias,
            key_bias=given.key_bias,
            segment_ids=given.segment_ids,
            is_causal=given.is_causal,
            implementation=self.implementation,
            axis_name=given.axis_name,
        )

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """An empty cache and the last L queries and keys, zeros before the first token."""
        return cross_correlation_attention_init_state(
            batch,
            max_length,
            self.sizes.kv_heads,
            self.sizes.head_dim,
            self.lag_logits[...],
            num_heads=self.sizes.num_heads,
            dtype=dtype,
        )

    def step(
        self, state: Any, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens."""
        arrays: dict[str, Any] = {
            "query": query,
            "key": key,
            "value": value,
            "lag_logits": self.lag_logits[...],
            "key_bias": given.key_bias,
            "query_seq_lengths": given.num_new_tokens(),
        }
        if (axis := given.cache_axis) is None:
            return cross_correlation_attention_step(state, **arrays)
        cut = state.cut_by_position(axis)
        return step_on_parts(cross_correlation_attention_step, axis, state, cut, **arrays)


register_mechanism(
    MechanismRow(
        name="lags",
        syntax="lags[:LAGS]",
        help="softmax of scores averaged over shifts by up to LAGS tokens (8)",
        mechanism=CrossCorrelation,
        parse=lambda lags="8": CrossCorrelation(whole_number("lags", lags)),
        spell=lambda mechanism: (str(mechanism.lags),),
        implementations=BACKENDS,
    )
)
