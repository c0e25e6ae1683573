"""What mechanisms are given: the sizes of their layer, and the inputs of a call besides query, key and value."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.padding import padding_key_bias


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """Sizes of the attention layer that a mechanism is built for.

    Attributes:
        num_heads: query heads N.
        head_dim: width H of a head.
        num_kv_heads: key/value heads K; None for N.
        in_features: width D of the layer's input. None when the layer passes no `inputs`; what a mechanism would read
            from them it then reads from the keys.
        param_dtype: dtype of learned arrays.
    """

    num_heads: int
    head_dim: int
    num_kv_heads: int | None = None
    in_features: int | None = None
    param_dtype: Any = jnp.float32

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """What comes with queries, keys and values; a mechanism raises for what it cannot use.

    Attributes:
        inputs: the layer's input at the key positions, before any projection.
        key_bias: added to the score of key j in log space; −inf removes the key.
        token_mask: True at real tokens; padding is neither attended to nor counted in any statistic. In a decoding
            step the real tokens of a row come first.
        query_mask: the same for the queries; None where they are the tokens of the keys.
        query_inputs: the layer's input at the queries in cross-attention; None where they are the tokens of the keys.
        mask: True where query i may attend to key j.
        bias: added to the scores of single pairs.
        segment_ids: tokens attend only within their segment (packing).
        tree: a `jaxattn.Tree` over the tokens, or a batch of them.
        is_causal: query i attends to keys j <= i.
        axis_name: the axis of a mesh over which `jax.shard_map` has cut the tokens of all arrays; None if it has not.
        cache_axis: in a decoding step, the axis of the program's mesh over which a cache is cut by position where the
            mechanism can; None for caches that are whole on every device.
    """

    inputs: Float[Array, "B S D"] | None = None
    key_bias: Float[Array, "#B S #N"] | None = None
    token_mask: Bool[Array, "B S"] | None = None
    query_mask: Bool[Array, "B T"] | None = None
    query_inputs: Float[Array, "B T D"] | None = None
    mask: Bool[Array, "#B #N #T #S"] | None = None
    bias: Float[Array, "#B #N #T #S"] | None = None
    segment_ids: Int[Array, "B S"] | None = None
    tree: Any = None
    is_causal: bool = False
    axis_name: str | None = None
    cache_axis: str | None = None

    def add_key_bias(self, key_bias: Array) -> "AttentionInputs":
        """The same with `key_bias` added: how a gate passes its bias to the mechanism that it gates."""
        total = key_bias if self.key_bias is None else self.key_bias + key_bias
        return dataclasses.replace(self, key_bias=total)

    def num_new_tokens(self) -> Int[Array, " B"] | None:
        """In a decoding step, how many real tokens each row has; None if all are."""
        return None if self.token_mask is None else self.token_mask.sum(axis=1, dtype=jnp.int32)

    def advance(self, position: Int[Array, " B"], count: int) -> Int[Array, " B"]:
        """The position of every row after a decoding step of `count` tokens, padding included."""
        new = self.num_new_tokens()
        return position + (count if new is None else new)

    def padding_key_bias(self) -> Array | None:
        """`key_bias` with −inf at padding."""
        return padding_key_bias(self.token_mask, self.key_bias)

    def folded_key_bias(self, length: int) -> Array | None:
        """`key_bias` with −inf at padding and at the keys that `mask` (B, N, 1, S) removes.

        For mechanisms that sum over the keys before any query comes.

        Args:
            length: number of keys S.

        Raises:
            ValueError: `mask` differs from query to query.
        """
        key_bias = self.padding_key_bias()
        if self.mask is None:
            return key_bias
        if self.mask.shape[-2] != 1:
            raise ValueError(
                "mask must be the same for all queries, (B, N, 1, S): this mechanism sums over the keys before any "
                f"query comes; got shape {self.mask.shape}. is_causal, token_mask and segment_ids are accepted."
            )
        kept = jnp.moveaxis(self.mask[..., 0, :], -1, -2)
        kept = jnp.broadcast_to(kept, (*kept.shape[:-2], length, kept.shape[-1]))
        return jnp.where(kept, 0.0 if key_bias is None else key_bias, -jnp.inf)
