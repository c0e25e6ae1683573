"""Fused attention on TPU through tokamax, an optional dependency."""

from collections.abc import Sequence
from importlib.util import find_spec

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn.core.call import Call
from jaxattn.softmax.bias_by_values import attend_with_key_bias
from jaxattn.softmax.options import other_option


def tokamax_is_installed() -> bool:
    """Whether `import tokamax` would find a package."""
    return find_spec("tokamax") is not None


def tokamax_cannot(call: Call) -> str | None:
    """Why tokamax's fused kernels cannot take these arguments, or None if they can."""
    if call.bias is not None:
        return "takes no bias on TPU; use implementation='blockwise', or a key_bias."
    if call.mask is not None:
        return "takes no mask that depends on the query; use implementation='blockwise'."
    if call.segment_ids is not None:
        return "takes no segment_ids; use implementation='blockwise'."
    if (option := other_option(call)) is not None:
        return f"takes no {option}; use implementation='blockwise'."
    if call.window != (None, None):
        return "takes no local_window_size; use implementation='blockwise'."
    if call.query.dtype not in (jnp.bfloat16, jnp.float32):
        return f"takes query, key and value in bfloat16 or float32; got {call.query.dtype}."
    return None


def tokamax_attention(
    call: Call, backends: str | Sequence[str] = ("mosaic", "xla_chunked")
) -> Float[Array, "B T K G V"]:
    """Splash attention on TPU, else tokamax's chunked XLA; a key bias is carried by the values.

    Expects lengths folded into key_bias (`fold_lengths`): the TPU kernel knows neither lengths nor biases.

    Args:
        call: checked arguments.
        backends: tokamax's own names, tried in order.

    Raises:
        ImportError: tokamax is not installed.
    """
    try:
        import tokamax
        from absl import flags
    except ImportError as error:
        raise ImportError(
            "implementation='tokamax' needs the package tokamax: pip install 'jaxattn[tpu]'."
        ) from error

    # Left alone, tokamax parses the command line of whatever program this is, and dies of flags not its own.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def fused(query: Array, key: Array, value: Array) -> Array:
        return tokamax.dot_product_attention(
            query, key, value, scale=call.scale, is_causal=call.is_causal, implementation=backends
        )

    return attend_with_key_bias(fused, call)
