"""Softmax attention, and the one place that chooses a backend."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.call import Call, accumulation_dtype, check_call
from jaxattn.core.checks import check_choice, is_known
from jaxattn.core.explicit import automatic_axes, but_width
from jaxattn.core.padding import fold_key_mask, fold_lengths, query_is_valid, zero_padded_rows, zero_padding
from jaxattn.core.pallas.choice import has_devices_of_its_own
from jaxattn.core.pallas.parts import Parts, on_parts, own_part
from jaxattn.core.platform import by_platform
from jaxattn.core.sequence import check_axis, gather
from jaxattn.softmax.blockwise import blockwise_attention
from jaxattn.softmax.cudnn import cudnn_attention, cudnn_cannot
from jaxattn.softmax.options import with_options
from jaxattn.softmax.splash import splash_attention, splash_cannot
from jaxattn.softmax.xla import xla_attention

# The output, and the logarithm of the normaliser where it is asked for.
Result = tuple[Float[Array, "B T K G V"], Float[Array, "B T K G"] | None]

IMPLEMENTATIONS = (None, "xla", "blockwise", "cudnn", "splash")

# Scores a head (T·S) from which the blockwise path is the faster one on a CPU, and splash attention has a whole tile;
# see choose_implementation.
_FEW_SCORES = 128 * 128
# Bytes of float32 scores from which they are not materialised on an accelerator.
_ACCELERATOR_SCORE_BYTES = 2**30


@automatic_axes(but_width)
def dot_product_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    *,
    key_bias: Float[Array, "*#B S #N"] | None = None,
    mask: Bool[Array, "*#B #N #T #S"] | None = None,
    bias: Float[Array, "*#B #N #T #S"] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "*B"] | None = None,
    key_value_seq_lengths: Int[Array, "*B"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    logits_soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    query_offset: int | Int[Array, "*#B"] | None = None,
    segment_ids: Int[Array, "*B T"] | tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None = None,
    return_residual: bool = False,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*B T N V"] | Any:
    r"""Softmax attention with a bias a key, as fast as the platform allows.

    For every query i and head, over the keys j that mask, lengths, window, segments and causality allow,

    $$ A_{ij} = \operatorname{softmax}_j(scale\; q_i \cdot k_j + key\_bias_j + bias_{ij}),
       \qquad out_i = \sum_j A_{ij} v_j. $$

    Follows `jax.nn.dot_product_attention`, with three differences: `key_bias`, `segment_ids`, and a row without
    any allowed key, which gives 0 (there: the mean of v). Scores and sums are float32 (float64 for float64
    inputs). NaN in removed keys and values (key_bias = −inf, a mask the same for all queries, or beyond
    key_value_seq_lengths) and in padded queries reaches neither outputs nor gradients.

    Args:
        query: (B, T, N, H), or (T, N, H) with every other array lacking the batch axis too.
        key: (B, S, K, H); K divides N (grouped queries: query head n reads key head n // (N / K)).
        value: (B, S, K, V); the width V may differ from H.
        key_bias: (B or 1, S, N or 1), natural log units, added to the scores of key j; −inf removes the key.
            The energy gate is one, and padding is one. Differentiable on every path.
        mask: bool, broadcastable to (B, N, T, S); True where query i may attend to key j.
        bias: float, broadcastable to (B, N, T, S), added to the scores. Differentiable where accepted.
        scale: factor on q·k, 1/sqrt(H) when None.
        is_causal: query i attends to keys j <= i only, both counted from the start.
        local_window_size: (left, right), or one number for both: query i attends to keys
            i − left <= j <= i + right only. "blockwise" then takes time O(T (left + right)).
        logits_soft_cap: positive number c; q·k times scale becomes c tanh(scale q·k / c), before any bias.
        sinks: (N,) score of a key without a value, for every query head: exp(sinks) is added to the normaliser,
            so that a row need not attend to anything. Differentiable. A number added to key_bias no longer cancels.
        query_offset: position of query 0 among the keys, () or (B,), for is_causal and local_window_size:
            queries that continue a cache of keys.
        query_seq_lengths: (B,) int; rows from there on give 0.
        key_value_seq_lengths: (B,) int; keys from there on are removed.
        segment_ids: (B, T) int, or a pair (B, T), (B, S): a query attends to keys of its own segment only.
        return_residual: return the logarithm of the normaliser too. Differentiable, unlike that of `jax.nn`.
        implementation: None chooses for the platform that is compiled for (see `choose_implementation`), and can be
            differentiated as all of its choices can. "xla" holds the T×S scores in memory and can
            be differentiated any number of times, forward and reverse. "blockwise" is flash attention in plain
            XLA: memory linear in T + S, every option, reverse mode once only. "cudnn" (NVIDIA, float16 or
            bfloat16) and "splash" (TPU, float32 or bfloat16) are fused kernels; they take neither bias, nor
            query_offset, return_residual, nor a mask that depends on the query. Nor does cuDNN take segment_ids,
            logits_soft_cap and sinks, and of windows those without a right side only, for T = S. No compiler can
            partition splash: by name in programs of several devices, wrap the call in `jax.shard_map`.
        axis_name: an axis of a mesh over which `jax.shard_map` cuts the tokens, all devices having as many queries
            and as many keys. Every device gathers all keys and values. A mask must then be the same for all queries;
            bias, query_offset and lengths are not accepted.

    Returns:
        (B, T, N, V) in the query's dtype. With `return_residual` a pair: that and (B, T, N) float32 (float64 for
        float64 inputs), the logarithm of Σ_j exp(score_ij) with the sink counted, −inf in rows without any key.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value, or `implementation` cannot do what is asked;
            the message says which, what it was and what is accepted.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (2, 16, 4, 8))
        >>> out = dot_product_attention(x, x[:, :, :2], x[:, :, :2], is_causal=True)
        >>> out.shape
        (2, 16, 4, 8)
        >>> padding = jnp.where(jnp.arange(16) < 10, 0.0, -jnp.inf)[None, :, None]
        >>> dot_product_attention(x, x, x, key_bias=padding).shape
        (2, 16, 4, 8)
        >>> last = dot_product_attention(x[:, 12:], x, x, is_causal=True, local_window_size=4, query_offset=12)
        >>> bool(jnp.allclose(last[:, -1], dot_product_attention(x[:, 15:], x[:, 11:], x[:, 11:])[:, 0], atol=1e-5))
        True
        >>> out, log_total = dot_product_attention(x, x, x, sinks=jnp.zeros(4), return_residual=True)
        >>> log_total.shape, bool((log_total > 0).all())  # the sink alone makes it log 1
        ((2, 16, 4), True)

    Reference: Vaswani et al. 2017, "Attention is all you need", equation 1; Ainslie et al. 2023, "GQA"; Dao et
    al. 2022, "FlashAttention" (blockwise).
    """
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    check_axis(
        axis_name,
        bias=bias,
        query_offset=query_offset,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
    )
    call = check_call(
        query,
        key,
        value,
        key_bias=key_bias,
        mask=mask,
        bias=bias,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        segment_ids=segment_ids,
    )
    call = with_options(
        call,
        local_window_size=local_window_size,
        logits_soft_cap=logits_soft_cap,
        sinks=sinks,
        query_offset=query_offset,
        return_residual=return_residual,
    )
    if axis_name is not None:
        call = with_all_keys(call, axis_name)
    # Values of width 0 leave the normaliser to compute.
    skipped = call.is_empty and not (return_residual and 0 not in (*query.shape, *key.shape))
    out, log_total = _without_keys(call) if skipped else _attend(fold_key_mask(call), implementation)
    out = call.merge_heads(out)
    if not return_residual:
        return out
    assert log_total is not None  # kernels that have none were refused
    return out, call.merge_heads(log_total[..., None])[..., 0]


def with_all_keys(call: Call, axis_name: str) -> Call:
    """The call of this device's queries over the keys of all devices."""
    length, call = call.key.shape[1], fold_key_mask(call)
    if call.mask is not None:
        raise ValueError(
            "mask must be the same for all queries, (B, N, 1, S), with axis_name; got a mask of pairs."
        )
    if call.is_causal or call.window != (None, None):
        if call.query.shape[1] != length:
            raise ValueError(
                "query must have as many tokens as key with axis_name and is_causal or a window, S = "
                f"{length}; got {call.query.shape[1]}."
            )
        call = call.replace(query_offset=lax.axis_index(axis_name) * length)
    ids = call.segment_ids
    return call.replace(
        key=gather(call.key, axis_name, 1),
        value=gather(call.value, axis_name, 1),
        key_bias=gather(call.key_bias, axis_name, 1),
        segment_ids=None if ids is None else (ids[0], gather(ids[1], axis_name, 1)),
    )


def _without_keys(call: Call) -> Result:
    """Zeros, and a normaliser of the sinks alone."""
    *rows, _ = call.query.shape
    dtype = accumulation_dtype(call.query, call.key, call.value)
    sinks = jnp.full((), -jnp.inf, dtype) if call.sinks is None else call.sinks.astype(dtype)
    out = jnp.zeros((*rows, call.value.shape[-1]), call.query.dtype)
    return _for_valid_queries(call, out, jnp.broadcast_to(sinks, rows))


def _attend(call: Call, implementation: str | None) -> Result:
    if implementation is None:
        parts = own_part(call)
        return by_platform(
            lambda platform: (choose_implementation(call, platform), parts), _attend_with, call
        )
    lengths = call.query.shape[1], call.key.shape[1]
    if implementation != "xla" and not is_known(*lengths):
        raise ValueError(
            f"implementation={implementation!r} needs lengths that are known while tracing; got T = {lengths[0]}, "
            f"S = {lengths[1]}. Under jax.export with symbols for lengths use 'xla'."
        )
    cannot = {"cudnn": cudnn_cannot, "splash": splash_cannot}.get(implementation)
    if cannot and (reason := cannot(call)):
        raise ValueError(f"implementation={implementation!r} {reason}")
    return _attend_with((implementation, own_part(call)), call)


def _attend_with(how: tuple[str, Parts | None], call: Call) -> Result:
    (implementation, parts), call = how, zero_padding(call)
    log_total = None
    if implementation == "cudnn":
        out = cudnn_attention(call)
    elif implementation == "splash":
        out = on_parts(parts, splash_attention, call)
    else:
        backend = {"xla": xla_attention, "blockwise": blockwise_attention}[implementation]
        out, log_total = backend(fold_lengths(call))
    return _for_valid_queries(call, out, log_total)


def _for_valid_queries(call: Call, out: Array, log_total: Array | None) -> Result:
    """What is returned: in padded query rows 0 and −inf."""
    out = zero_padded_rows(call, out)
    if log_total is None or not call.return_residual:
        return out, None
    if call.query_seq_lengths is not None:
        log_total = jnp.where(query_is_valid(call)[..., 0], log_total, -jnp.inf)
    return out, log_total


def attend_cached(call: Call, axis_name: str | None = None) -> Float[Array, "B T K G V"]:
    """Attention over a cache whose removed keys are zero already, causal from `query_offset` on.

    With `axis_name` every device has a part of the cache, and the same queries.
    """
    if axis_name is None:
        return by_platform(lambda platform: prefers_blockwise(call, platform), _attend_in_xla, call)[0]
    if call.sinks is not None:  # they count once
        call = call.replace(sinks=jnp.where(lax.axis_index(axis_name) == 0, call.sinks, -jnp.inf))
    call = call.replace(return_residual=True)
    out, log_total = by_platform(lambda platform: prefers_blockwise(call, platform), _attend_in_xla, call)
    assert log_total is not None
    # A part without keys has a total of 0.
    top = lax.pmax(lax.stop_gradient(log_total), axis_name)
    weight = jnp.exp(log_total - jnp.where(top == -jnp.inf, 0, top))
    total = lax.psum(weight, axis_name)
    out = lax.psum(out.astype(weight.dtype) * weight[..., None], axis_name)
    return (out / jnp.where(total == 0, 1, total)[..., None]).astype(call.query.dtype)


def _attend_in_xla(in_blocks: bool, call: Call) -> Result:
    attend = blockwise_attention if in_blocks else xla_attention
    out, log_total = attend(call)
    return out, log_total if call.return_residual else None


def choose_implementation(call: Call, platform: str) -> str:
    """The implementation that None stands for on a platform.

    NVIDIA GPU: "cudnn" where it is installed and its limits allow. TPU: "splash" likewise, from T·S = 128² on, where
    a device is known to do all or all of its own part (`has_devices_of_its_own`). Otherwise "blockwise"
    where it is faster than "xla" (CPU: from T·S = 128² on, by a quarter there and four times at 2048²; measured) or
    where the scores would not reasonably fit (elsewhere: above 1 GiB; not measured), else "xla", which
    is all there is for lengths that `jax.export` has symbols for.

    Args:
        call: checked arguments.
        platform: "cpu", "cuda", "tpu" or "other".
    """
    if not is_known(num_scores(call)):
        return "xla"
    if platform == "cuda" and cudnn_cannot(call) is None:
        return "cudnn"
    if (
        platform == "tpu"
        and has_devices_of_its_own(call)
        and splash_cannot(call) is None
        and num_scores(call) >= _FEW_SCORES
    ):
        return "splash"
    return "blockwise" if prefers_blockwise(call, platform) else "xla"


def prefers_blockwise(call: Call, platform: str) -> bool:
    """Whether blocks are better than scores in memory; see `choose_implementation`."""
    if not is_known(num_scores(call)):
        return False
    if platform == "cpu":
        return num_scores(call) >= _FEW_SCORES
    batch, _, num_kv_heads, group, _ = call.query.shape
    known_batch = batch if is_known(batch) else 1
    return known_batch * num_kv_heads * group * num_scores(call) * 4 > _ACCELERATOR_SCORE_BYTES


def num_scores(call: Call) -> int:
    """Scores a head, T·S."""
    return call.query.shape[1] * call.key.shape[1]
