"""cuDNN flash attention through jax.nn, with what it cannot do spelled out before it is called."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn.core.call import Call
from jaxattn.core.padding import fold_lengths
from jaxattn.softmax.key_columns import COLUMNS, merged_query, pad_axis, with_key_columns

# cuDNN takes head widths that are multiples of this.
WIDTH_MULTIPLE = 8

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
    for name in ("segment_ids", "query_offset", "logits_soft_cap", "sinks"):
        if getattr(call, name) is not None:
            return f"takes no {name}; use implementation='blockwise'."
    if call.return_residual:
        return "takes no return_residual, whose gradient it does not have; use implementation='blockwise'."
    left, right = call.reach
    if right not in (None, 0) or (left is not None and right is None):
        return "takes a local window on the left of the diagonal only; use implementation='blockwise'."
    if left is not None and call.query.shape[1] != call.key.shape[1]:
        return "takes local_window_size for T = S only; use implementation='blockwise'."
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
    extra = 0 if _without_windowed_lengths(call).key_bias is None else COLUMNS
    return padded_width(max(call.query.shape[-1] + extra, call.value.shape[-1]))


def padded_width(width: int) -> int:
    """`width` rounded up to what cuDNN accepts."""
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def _without_windowed_lengths(call: Call) -> Call:
    """Lengths as a key bias where there is a window: a query whose whole window is padding would be without keys."""
    return call if call.reach[0] is None else fold_lengths(call)


def cudnn_attention(call: Call) -> Float[Array, "B T K G V"]:
    """Fused attention on NVIDIA GPUs; a key bias is carried by columns of the keys (`with_key_columns`).

    jax.nn asks for one width, so query, key and value are padded with zeros to the widest of them, a multiple
    of 8: a key bias turns width 64 into 72. Its speed on a GPU has not been measured here.
    """
    shape, (left, right), width = call.query.shape[:4], call.reach, _width(call)
    values = call.value.shape[-1]
    call = with_key_columns(_without_windowed_lengths(call))
    lengths = call.key_value_seq_lengths
    out = jax.nn.dot_product_attention(
        *(pad_axis(x, 3, width) for x in (merged_query(call), call.key, call.value)),
        scale=call.scale,
        is_causal=right == 0,
        local_window_size=None if left is None else (left, 0),
        # A sequence without keys attends to one (a zero vector) and its output is dropped below.
        key_value_seq_lengths=None if lengths is None else jnp.maximum(lengths, 1).astype(jnp.int32),
        implementation="cudnn",
    )
    out = out[..., :values].reshape(*shape, values)
    return out if lengths is None else jnp.where(lengths[:, None, None, None, None] > 0, out, 0)
