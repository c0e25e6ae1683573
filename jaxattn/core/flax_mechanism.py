"""A mechanism as the `attention_fn` of Flax's own multi-head attention."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.inputs import AttentionInputs


class AttentionFn(nnx.Module):
    """Adapts a mechanism to the call that `flax.nnx.MultiHeadAttention` makes.

    Of Flax's mask (B, N, T, S), keys that no query may see and queries that see no key are padding, which no
    statistic and no neighbour reads. A mask (B, 1, 1, S) says nothing of the queries: for self-attention over padding
    on the left give `nnx.make_attention_mask(keep, keep)`.

    Linen's `MultiHeadDotProductAttention` makes the same call, but never passes `is_causal`: give it
    `functools.partial(attention_fn, is_causal=True)`. Parameters of the mechanism would be constants there.
    """

    def __init__(self, mechanism: Any):
        self.mechanism = mechanism

    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S N H"],
        value: Float[Array, "B S N H"],
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        dropout_rng: jax.Array | None = None,
        dropout_rate: float = 0.0,
        broadcast_dropout: bool = True,
        deterministic: bool = True,
        dtype: Any = None,
        precision: Any = None,
        module: nnx.Module | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "B T N H"]:
        """Attends; the arguments are those of `flax.nnx.dot_product_attention`.

        Raises:
            ValueError: the layer has other heads than the mechanism was built for, or something is asked that these
                kernels cannot do: dropout of weights, stored weights, a `precision`, a `bias` where the mechanism
                forms no scores, or `is_causal` where queries and keys are not the same tokens.
        """
        sizes = self.mechanism.sizes
        for name, array in (("query", query), ("key", key)):
            if array.shape[-2:] != (sizes.num_heads, sizes.head_dim):
                raise ValueError(
                    f"{name} must have the heads that attention_fn was made for, (num_heads, head_dim) = "
                    f"{(sizes.num_heads, sizes.head_dim)}; got {array.shape[-2:]}."
                )
        if dropout_rate > 0.0 and not deterministic:
            raise ValueError(
                f"dropout_rate must be 0 here: no T×S weights exist to drop; got {dropout_rate}. "
                "Use dropout on the layer's output instead."
            )
        for name, setting, reason in (
            ("sow_weights", module, "no T×S weights exist to store"),
            ("precision", precision, "products are accumulated in float32"),
        ):
            if setting is not None:
                raise ValueError(f"{name} must not be set: {reason}.")
        length, key_length = query.shape[1], key.shape[1]
        if is_causal and length != key_length:
            raise ValueError(
                f"is_causal needs queries and keys of the same tokens; got T = {length} and S = {key_length}. In a "
                "Flax layer with decode=True leave is_causal out: its mask of the cache is causal."
            )
        if self.mechanism.reads_earlier_queries and length == 1 < key_length:
            raise ValueError(
                f"query must come with the queries before it, which this mechanism reads; got T = 1 and S = "
                f"{key_length}, as in a Flax layer with decode=True. Decode with jaxattn.nn.Attention."
            )
        if dtype is not None:
            query, key, value = (x.astype(dtype) for x in (query, key, value))
        token_mask = query_mask = None
        if mask is not None:
            mask = jnp.asarray(mask, bool)
            token_mask = jnp.broadcast_to(mask.any(axis=(-3, -2)), key.shape[:2])
            seen = mask.any(axis=(-3, -1)) if mask.shape[-2] > 1 else jnp.ones((1, 1), bool)
            query_mask = jnp.broadcast_to(seen, query.shape[:2])
        given = AttentionInputs(
            token_mask=token_mask, query_mask=query_mask, mask=mask, bias=bias, is_causal=is_causal
        )
        return self.mechanism(query, key, value, given)
