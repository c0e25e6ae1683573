"""Attention by random features: the features are made in blocks on the way and never stored."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn.core.call import check_call
from jaxattn.core.decode import check_step
from jaxattn.core.explicit import automatic_axes, but_width, same
from jaxattn.core.sequence import check_axis
from jaxattn.linear import (
    LinearAttentionState,
    attend_features,
    check_segments,
    linear_attention_init_state,
    step_features,
)
from jaxattn.random_features.feature_map import FeatureMap


@automatic_axes(but_width)
def random_feature_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    feature_map: FeatureMap,
    *,
    key_bias: Float[Array, "*#B S #N"] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    segment_ids: Int[Array, "*B T"] | None = None,
    chunk_size: int | None = None,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*B T N V"]:
    r"""Estimates softmax attention in time and memory linear in length.

    With x = scale^½ q, y = scale^½ k and a feature map with E[φ_q(x)·φ_k(y)] = exp(x·y),

    $$ out_i = \frac{\sum_j e^{key\_bias_j} (\phi_q(x_i) \cdot \phi_k(y_j))\, v_j}
                   {\sum_j e^{key\_bias_j} (\phi_q(x_i) \cdot \phi_k(y_j))}. $$

    That is `linear_attention` of the map's features. They are made a block of tokens at a time, forward and again
    backward, so that memory is O(T (H + V)) and not O(T M). The features of a query are relative to their largest,
    which cancels; keys are held relative to the largest weight so far, so scores of any size stay finite. The first
    derivative is in reverse mode; over it, forward and reverse mode both work.

    Features are made in float32, with w·x to 2^-17 |w| |x| on a TPU and 2^-11 |w| |x| on a GPU with TF32, which is
    the relative error of a feature. On accelerators bfloat16 queries, keys and values make products of bfloat16
    features, with float32 sums.

    The estimate has an error that grows with |q|, |k| as exp(scale |q + k|²): see `diagnose`.

    Args:
        query: (B, T, N, H), or (T, N, H) with every other array lacking the batch axis too.
        key: (B, S, K, H); K divides N (grouped queries).
        value: (B, S, K, V).
        feature_map: from `FeatureMap.create`, calibrated if its component has statistics. Differentiable.
        key_bias: (B or 1, S, N or 1), natural log units, added to the score of key j; −inf removes it.
        scale: factor on q·k, 1/sqrt(H) when None; the same as in `calibrate`.
        is_causal: query i attends to keys j <= i only, both counted from the start.
        segment_ids: (B, T) int: a query attends to keys of its own segment only; needs T = S.
        chunk_size: tokens a chunk of the causal form; None for 256 in fused kernels, 64 on a CPU, 128 elsewhere.
        implementation: None, "xla", "pallas" or "mosaic_gpu", as in `linear_attention`. "pallas" makes the
            features on the chip, of the components posrf, gerf, oprf, sderf, aderf, saderf and trigrf on every weight
            matrix but sgq and ssr, whose dense form it takes. "mosaic_gpu" takes all features and stores
            them in bfloat16.
        axis_name: an axis of a mesh over which the tokens are cut, as in `linear_attention`.

    Returns:
        (B, T, N, V) in the query's dtype; 0 for a query without any key.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value; the message says which and what is accepted.

    Examples:
        >>> import jax, jaxattn
        >>> q = jax.random.normal(jax.random.key(0), (1, 64, 2, 16)) / 2
        >>> feature_map = jaxattn.FeatureMap.create(jax.random.key(1), 16, 256).calibrate(q, q)
        >>> out = jaxattn.random_feature_attention(q, q, q, feature_map)
        >>> exact = jaxattn.dot_product_attention(q, q, q)
        >>> bool(abs(out - exact).mean() < 0.2 * abs(exact).mean())
        True

    Reference: Choromanski et al. 2021, "Rethinking attention with Performers", section 2; arXiv 2405.15310,
    "Spectraformer", section 3.
    """
    check_axis(axis_name)
    check_segments(segment_ids, query, key)
    call = check_call(
        query, key, value, key_bias=key_bias, scale=scale, is_causal=is_causal, segment_ids=segment_ids
    )
    out = attend_features(
        call, *feature_map.functions(call.scale, query.shape[-1]), chunk_size, implementation, axis_name
    )
    return out.astype(query.dtype)


def random_feature_attention_init_state(
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    feature_map: FeatureMap,
    *,
    num_heads: int | None = None,
    value_dim: int | None = None,
    dtype: Any = jnp.float32,
) -> LinearAttentionState:
    """The state before the first token: constant in the number of tokens to come.

    Args:
        batch: sequences decoded together, B.
        num_kv_heads: key/value heads, K.
        head_dim: width H of queries and keys.
        feature_map: the map that every step will be given.
        num_heads: query heads, N, if the key bias differs between query heads that share keys: each then keeps sums
            of its own. None for sums a key/value head.
        value_dim: width V of the values, `head_dim` when None.
        dtype: dtype of the sums.

    Returns:
        A pytree of fixed shapes.

    Raises:
        ValueError: a size is not positive, K does not divide N, or `head_dim` is not the map's.

    Examples:
        >>> import jax, jaxattn
        >>> feature_map = jaxattn.FeatureMap.create(jax.random.key(0), 16, 32)
        >>> jaxattn.random_feature_attention_init_state(2, 4, 16, feature_map).total.shape
        (2, 4, 32, 17)
    """
    feature_map.check_width("head_dim", head_dim)
    return linear_attention_init_state(
        batch,
        num_kv_heads,
        feature_map.num_features,
        num_heads=num_heads,
        value_dim=head_dim if value_dim is None else value_dim,
        dtype=dtype,
    )


@automatic_axes(same, but_width)
def random_feature_attention_step(
    state: LinearAttentionState,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K V"],
    feature_map: FeatureMap,
    *,
    key_bias: Float[Array, "#B T #N"] | None = None,
    scale: float | None = None,
    query_seq_lengths: Int[Array, " B"] | None = None,
    chunk_size: int | None = None,
) -> tuple[LinearAttentionState, Float[Array, "B T N V"]]:
    """Lets T new tokens attend causally to all tokens so far and to each other.

    Any split of a sequence into calls gives the causal `random_feature_attention` of the whole, up to rounding.

    Args:
        state: from `random_feature_attention_init_state` or an earlier step.
        query: (B, T, N, H), T >= 1 new tokens.
        key: (B, T, K, H).
        value: (B, T, K, V).
        feature_map: the same in every step.
        key_bias: (B or 1, T, N or 1), added to the scores of the new keys; −inf removes a key for good.
        scale: factor on the scores, 1/sqrt(H) when None; the same in every step.
        query_seq_lengths: (B,) int, how many of the T tokens each sequence has; see `dot_product_attention_step`.
        chunk_size: tokens a chunk when T is large; None for 64 on a CPU, 128 elsewhere.

    Returns:
        (new state, output (B, T, N, V) in the query's dtype).

    Raises:
        ValueError: a shape or dtype does not fit the state.

    Examples:
        >>> import jax, jaxattn
        >>> feature_map = jaxattn.FeatureMap.create(jax.random.key(0), 16, 32)
        >>> state = jaxattn.random_feature_attention_init_state(1, 2, 16, feature_map)
        >>> x = jax.random.normal(jax.random.key(1), (1, 3, 2, 16))
        >>> state, out = jaxattn.random_feature_attention_step(state, x, x, x, feature_map)
        >>> out.shape
        (1, 3, 2, 16)
    """
    call = check_step(query, key, value, key_bias, scale, query_seq_lengths)
    state, out = step_features(state, call, *feature_map.functions(call.scale, query.shape[-1]), chunk_size)
    return state, out.astype(query.dtype)
