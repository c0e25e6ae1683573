"""A key bias for kernels that know no bias: carried by columns of the keys."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxattn.core.call import Call, accumulation_dtype

# Columns that carry a bias: the sum of three roundings has all the bits of float32.
COLUMNS = 3
# How far below the least bias a removed key lies, in nats: far enough to have no weight beside another key, and near
# enough that a row of such keys alone is exact to 2⁻⁸, whatever a kernel fuses with the subtraction of its maximum.
_GAP = 2.0**16
# Biases beyond count as this.
_LARGEST = 2.0**20


def with_key_columns(call: Call) -> Call:
    """The call without key_bias: the bias became a part of q·k.

    With c the query's new entries and b the key bias,

        s [q, c, c, c] · [k, b₁, b₂, b₃] = s q·k + b,   b₁ + b₂ + b₃ = b / (s c),

    b₁ being b / (s c) rounded to the dtype of the keys, b₂ what is left rounded again, and so on. c is a power of
    two such that s c >= 16, or float16 would not reach far enough. So biases come out to float32's accuracy,
    whatever they span, and their gradient is that of b₁. −inf becomes the least bias − 2¹⁶: such keys have no weight
    beside others, and since their values are set to 0, a row without any other gives 0 and sends no gradient
    back. Biases beyond ±2²⁰ count as ±2²⁰.

    Args:
        call: with one bias a query head and K < N, its keys and values are repeated to N heads. Removed keys are 0
            (`zero_padding`).
    """
    if call.key_bias is None:
        return call
    if call.key_bias.shape[3] != 1:
        call = call.with_own_keys()
    if call.scale <= 0:
        call = call.replace(query=(call.query * call.scale).astype(call.query.dtype), scale=1.0)
    dtype = accumulation_dtype(call.query, call.key, call.value)
    factor = 2.0 ** math.ceil(math.log2(16 / call.scale))
    # Mosaic multiplies float32 as bfloat16 unless told otherwise.
    kind = jnp.float16 if call.key.dtype == jnp.float16 else jnp.bfloat16
    largest = float(jnp.finfo(kind).max)
    bias = call.key_bias[..., 0].astype(dtype)  # (B or 1, S, K or 1)
    removed = bias == -jnp.inf
    kept = jnp.clip(jnp.where(removed, 0, bias), -_LARGEST, _LARGEST)
    floor = lax.stop_gradient(kept.min(axis=1, keepdims=True)) - _GAP
    rest = jnp.where(removed, floor, kept) / (call.scale * factor)
    columns = []
    for _ in range(COLUMNS):
        # Rounded, with the gradient of what is not.
        rounded = jnp.clip(rest, -largest, largest).astype(kind).astype(dtype)
        part = rest + lax.stop_gradient(rounded - rest)
        rest = rest - part
        columns.append(part)
    # The barrier keeps a TPU's compiler from giving all of the above the layout of columns, 128 times as large.
    stacked = lax.optimization_barrier(jnp.stack(columns).astype(call.key.dtype))
    key_columns = jnp.broadcast_to(jnp.moveaxis(stacked, 0, -1), (*call.key.shape[:3], COLUMNS))
    query_columns = jnp.full((*call.query.shape[:4], COLUMNS), factor, call.query.dtype)
    return call.replace(
        query=jnp.concatenate([call.query, query_columns], axis=-1),
        key=jnp.concatenate([call.key, key_columns], axis=-1),
        value=jnp.where(removed[..., None], 0, call.value),
        key_bias=None,
    )


def pad_axis(x: Array, axis: int, size: int) -> Array:
    """Zeros at the end of an axis up to `size`."""
    missing = size - x.shape[axis]
    return x if missing == 0 else jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)])


def merged_query(call: Call) -> Float[Array, "B T N H"]:
    """The queries with one axis of heads, as kernels from elsewhere take them."""
    return call.query.reshape(*call.query.shape[:2], -1, call.query.shape[-1])
