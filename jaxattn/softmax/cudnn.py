"""cuDNN flash attention through jax.nn, with what it cannot do spelled out before it is called."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn.core.call import Call
from jaxattn.softmax.bias_by_values import WIDTH_MULTIPLE, attend_with_key_bias, pad_width, padded_width
from jaxattn.softmax.options import other_option

# Compute capabilities: the first GPUs with fused attention in cuDNN, and the first that take wider heads.
_AMPERE, _HOPPER = (8, 0), (9, 0)


@functools.cache
def cudnn_is_installed() -> bool:
    """Whether JAX finds cuDNN, whose version it wants while tracing."""
    one = jax.ShapeDtypeStruct((1, 1, 1, WIDTH_MULTIPLE), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), one, one, one)
    except RuntimeError:
        return False
    return True


@functools.cache
def nvidia_capability() -> tuple[int, int]:
    """The least compute capability of this process's NVIDIA GPUs, (9, 0) for Hopper; Ampere's without one."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return _AMPERE
    found = (device.compute_capability.split(".") for device in devices)
    return min((int(major), int(minor)) for major, minor in found)


def cudnn_cannot(call: Call) -> str | None:
    """Why cuDNN cannot take these arguments, or None if it can."""
    if call.query.dtype not in (jnp.float16, jnp.bfloat16) or not (
        call.query.dtype == call.key.dtype == call.value.dtype
    ):
        return (
            "needs query, key and value all in float16 or all in bfloat16; "
            f"got {call.query.dtype}, {call.key.dtype}, {call.value.dtype}."
        )
    if call.bias is not None:
        return "has no bias gradient at batch sizes above 1; use implementation='blockwise', or a key_bias."
    if call.mask is not None:
        return "takes no mask that depends on the query; use implementation='blockwise'."
    if call.segment_ids is not None:
        return "takes no segment_ids; use implementation='blockwise'."
    if (option := other_option(call)) is not None:
        return f"takes no {option}; use implementation='blockwise'."
    left, right = call.reach
    if right not in (None, 0) or (left is not None and right is None):
        return "takes a local window on the left of the diagonal only; use implementation='blockwise'."
    if left is not None and (
        call.query.shape[1] != call.key.shape[1] or call.key_value_seq_lengths is not None
    ):
        # A query whose whole window is padding would be without keys.
        return "takes local_window_size for T = S without key_value_seq_lengths only; use implementation='blockwise'."
    if call.key_bias is not None and call.query.dtype == jnp.float16:
        return "carries key_bias in the values, whose range float16 is too small for; use bfloat16."
    if not cudnn_is_installed():
        return "needs cuDNN, which comes with JAX's CUDA plugin: pip install 'jax[cuda12]'."
    capability, width = nvidia_capability(), _width(call)
    if capability < _AMPERE:
        return f"needs an NVIDIA GPU of compute capability 8.0 or above; this one has {capability}."
    widest = 256 if capability >= _HOPPER else 128
    if width > widest:
        return f"takes head widths up to {widest} on this device; query, key and value need {width}."
    return None


def _width(call: Call) -> int:
    """The common width that query, key and value are padded to."""
    extra = 0 if call.key_bias is None else 1
    return padded_width(max(call.query.shape[-1], call.value.shape[-1] + extra))


def cudnn_attention(call: Call) -> Float[Array, "B T K G V"]:
    """Fused attention on NVIDIA GPUs; a key bias is carried by the values (`attend_with_key_bias`).

    jax.nn asks for one width, so query, key and value are padded with zeros to the widest of them, a multiple
    of 8: a key bias turns width 64 into 72. Its speed on a GPU has not been measured here.
    """
    lengths = call.key_value_seq_lengths
    width = _width(call)
    left, right = call.reach

    def fused(query: Array, key: Array, value: Array) -> Array:
        out = jax.nn.dot_product_attention(
            pad_width(query, width),
            pad_width(key, width),
            pad_width(value, width),
            scale=call.scale,
            is_causal=right == 0,
            local_window_size=None if left is None else (left, 0),
            # A sequence without keys attends to one (a zero vector) and its output is dropped below.
            key_value_seq_lengths=None if lengths is None else jnp.maximum(lengths, 1).astype(jnp.int32),
            implementation="cudnn",
        )
        out = out[..., : value.shape[-1]]
        return out if lengths is None else jnp.where(lengths[:, None, None, None] > 0, out, 0)

    return attend_with_key_bias(fused, call)
