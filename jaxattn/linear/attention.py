"""Linear attention: weights that are dot products of features, so that keys can be summed before queries come."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from jaxattn.core.call import Call, check_call
from jaxattn.core.checks import check_flag
from jaxattn.core.explicit import automatic_axes, but_width
from jaxattn.core.pallas.choice import check_implementation
from jaxattn.core.pallas.parts import on_parts
from jaxattn.core.platform import by_platform
from jaxattn.core.sequence import check_axis
from jaxattn.linear.decay import attend_decayed, check_decay
from jaxattn.linear.implementation import IMPLEMENTATIONS, Fused, choose_implementation, refusals
from jaxattn.linear.pallas.fused import FusedHow, attend_fused
from jaxattn.linear.plan import IDENTITY, FeatureFunctions, Parameters, Tiling, choose_tiling
from jaxattn.linear.segments import attend_segments, check_segments


@automatic_axes(but_width)
def linear_attention(
    phi_q: Float[Array, "*B T N M"],
    phi_k: Float[Array, "*B S K M"],
    value: Float[Array, "*B S K V"],
    *,
    key_bias: Float[Array, "*#B S #N"] | None = None,
    log_decay: Float[Array, "*#B #S #N"] | None = None,
    normalize: bool = True,
    is_causal: bool = False,
    segment_ids: Int[Array, "*B T"] | None = None,
    chunk_size: int | None = None,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*B T N V"]:
    r"""Attention with weights φ_q·φ_k, in time and memory linear in length.

    For every query i and head, over the keys j that causality and segments allow,

    $$ out_i = \frac{\sum_j c_j (\phi_{q,i} \cdot \phi_{k,j})\, v_j}{\sum_j c_j (\phi_{q,i} \cdot \phi_{k,j})}
             = \frac{\phi_{q,i} \cdot \sum_j c_j \phi_{k,j} v_j^\top}{\phi_{q,i} \cdot \sum_j c_j \phi_{k,j}},
       \qquad c_j = e^{key\_bias_j}. $$

    The second form takes O(T M V) time. The causal form works in chunks of C tokens: it scores the pairs inside a
    chunk, and everything before it is one state of size M (V + 1). Its gradient is computed by blocks too and keeps
    O(T (M + V)) numbers and a state a block. The first derivative is in reverse mode (`jax.custom_vjp`); over it,
    forward and reverse mode both work.

    Sums are float32 (float64 for float64 inputs), relative to the largest key bias so far, so key_bias may have any
    magnitude, and so may features, which are divided by a power of two near their largest.

    Args:
        phi_q: (B, T, N, M) features of queries, or (T, N, M) with every other array lacking the batch axis too.
            Scaling those of one query changes nothing, down to the smallest normal numbers.
        phi_k: (B, S, K, M) features of keys; K divides N (grouped queries).
        value: (B, S, K, V).
        key_bias: (B or 1, S, N or 1), natural log units: multiplies φ_k by its exponential; −inf removes the key.
            Without normalisation nothing divides by it: values above 40 raise, and count as 40 where a
            transformation such as jit hides them.
        log_decay: (B or 1, S or 1, N or 1), natural log units, with normalize=False: token t multiplies all sums of
            earlier keys by its exponential, so that key j has the weight exp(Σ_{j<r<=i} log_decay_r) for query i. One
            number a head is RetNet's decay; a number a token and head is a scalar gate, as in GLA and Mamba-2. (With
            normalisation such a decay is a key bias: see `forget_key_bias`.)
        normalize: divide by the sum of the weights. False gives the sums themselves, in causal attention only, with
            weights that are the products of the features as they are.
        is_causal: query i attends to keys j <= i only, both counted from the start.
        segment_ids: (B, T) int: a query attends to keys of its own segment only; needs T = S. Ids may come in any
            order.
        chunk_size: C, tokens a chunk of the causal form; None for 256 in fused kernels for TPUs, 64
            in that for GPUs and on a CPU, 128 elsewhere.
        implementation: "xla" runs everywhere. "pallas" is fused kernels for TPUs, which read and write every array
            once forward, keys and values twice where there are segment_ids without is_causal; they take neither
            log_decay and normalize=False nor float64. Second derivatives are then those of "xla", and raise inside a
            `jax.lax.scan`. No compiler can partition the kernels: by name in programs of several devices, wrap the
            call in `jax.shard_map` with check_vma=False. None takes them where a TPU is known to do all, or all of
            its part, and they can, else "xla".
            "mosaic_gpu" is a kernel for NVIDIA Hopper, causal and bfloat16 only; it is experimental, as it was
            compiled and interpreted but never run on a GPU, and only taken by name.
        axis_name: an axis of a mesh over which `jax.shard_map` cuts the tokens, all devices having as many. Devices
            exchange their sums over keys, log2(devices) times, and no tokens. Segments must then be contiguous.

    Returns:
        (B, T, N, V) in the dtype of `value`; 0 for a query without any key. Features of any sign are accepted; where
        the weights of a query add up to (nearly) 0 the quotient is large but finite.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value; the message says which and what is accepted.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (2, 16, 4, 8))
        >>> phi = jax.nn.elu(x) + 1
        >>> linear_attention(phi, phi[:, :, :2], x[:, :, :2], is_causal=True).shape
        (2, 16, 4, 8)

    Reference: Katharopoulos et al. 2020, "Transformers are RNNs", equations 5 to 12; the chunked form as in Hua et
    al. 2022, "Transformer quality in linear time", section 3.3. Decays: Sun et al. 2023, "Retentive network",
    equation 5; Yang et al. 2024, "Gated linear attention"; Dao and Gu 2024, "Transformers are SSMs", section 6.
    """
    check_axis(axis_name)
    check_segments(segment_ids, phi_q, phi_k)
    call = check_call(
        phi_q,
        phi_k,
        value,
        key_bias=key_bias,
        log_decay=log_decay,
        is_causal=is_causal,
        segment_ids=segment_ids,
    )
    call = check_decay(call, check_flag("normalize", normalize))
    if normalize:
        out = attend_features(call, IDENTITY, [], chunk_size, implementation, axis_name)
        return out.astype(value.dtype)
    no_sums = "takes neither normalize=False nor log_decay."
    check_implementation(implementation, dict.fromkeys(IMPLEMENTATIONS[2:], no_sums))
    call = call.with_key_weights()
    if call.is_empty:
        return call.zeros(value.dtype)
    out = by_platform(
        lambda platform: (choose_tiling(chunk_size, call, platform), axis_name), attend_decayed, call
    )
    return call.merge_heads(out).astype(value.dtype)


def attend_features(
    call: Call,
    features: FeatureFunctions,
    parameters: Parameters,
    chunk_size: int | None,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*B T N V"]:
    """Linear attention of the features that `features` make, in the dtype of `Call.with_own_sums`."""
    call = call.with_own_sums()
    parameters = features.repeat_parameters(parameters, call.key.shape[2])
    if axis_name is None:
        reasons = refusals(call, features, features.number(parameters, call.query), chunk_size)
    else:
        reasons = dict.fromkeys(IMPLEMENTATIONS[2:], "takes no axis_name; use implementation='xla'.")
    check_implementation(implementation, reasons)
    if call.is_empty:
        return call.zeros(call.query.dtype)

    def choose(platform: str) -> How:
        tiling = choose_implementation(call, reasons["pallas"], implementation, chunk_size, platform)
        return How(features, tiling, axis_name)

    return call.merge_heads(by_platform(choose, attend_tiled, parameters, call))


class How(NamedTuple):
    """What is static about one call."""

    features: FeatureFunctions
    tiling: Tiling | Fused
    axis_name: str | None = None


def attend_tiled(how: How, parameters: Parameters, call: Call) -> Float[Array, "B T K G V"]:
    """Linear attention of a call in the form of `Call.with_own_sums`, in a kernel or cut as a platform likes it."""
    features, tiling, axis_name = how
    if isinstance(tiling, Tiling):
        return attend_segments(call.with_key_weights(), features, parameters, tiling, axis_name)
    if tiling.name == "pallas":
        from jaxattn.linear.pallas.attention import KERNELS
    else:
        from jaxattn.linear.mosaic_gpu.attention import KERNELS

    def attend(call: Call, *parameters: Array) -> Array:
        return attend_fused(FusedHow(KERNELS, features, tiling.chunk), parameters, call)

    return on_parts(tiling.parts, attend, call, parameters, features.by_head)
