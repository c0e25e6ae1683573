"""Options of softmax attention that no other family has, checked."""

from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn.core.call import Call
from jaxattn.core.checks import check_dtype, check_flag, check_shape
from jaxattn.softmax.reach import check_query_offset, check_window

# Caps that scores can be divided and multiplied by within float32.
_LEAST_CAP, _LARGEST_CAP = 1e-30, 1e30


def with_options(
    call: Call,
    *,
    local_window_size: Any = None,
    logits_soft_cap: Any = None,
    sinks: Any = None,
    query_offset: Any = None,
    return_residual: bool = False,
) -> Call:
    """The call with options of softmax attention; see `dot_product_attention`.

    Raises:
        ValueError: one is not what it must be.
    """
    call = call.replace(
        window=check_window(local_window_size),
        logits_soft_cap=check_soft_cap(logits_soft_cap),
        sinks=_split_sinks(sinks, call),
        return_residual=check_flag("return_residual", return_residual),
    )
    offset = check_query_offset(query_offset, call.query.shape[0], call.batched, call.reach)
    return call.replace(query_offset=offset)


def check_soft_cap(logits_soft_cap: Any) -> float | None:
    """The cap as a Python float.

    Raises:
        ValueError: it is neither None nor a number known at trace time that float32 scores can be divided by.
    """
    if logits_soft_cap is None:
        return None
    known = isinstance(logits_soft_cap, Real) and not isinstance(logits_soft_cap, jax.core.Tracer | bool)
    if not known or not _LEAST_CAP <= logits_soft_cap <= _LARGEST_CAP:
        raise ValueError(
            f"logits_soft_cap must be None or a positive number known at trace time, {_LEAST_CAP} to "
            f"{_LARGEST_CAP}; got {logits_soft_cap!r}."
        )
    return float(logits_soft_cap)


def _split_sinks(sinks: Any, call: Call) -> Any:
    """(N,) -> (K, G)."""
    if sinks is None:
        return None
    num_kv_heads, group = call.query.shape[2:4]
    check_dtype("sinks", sinks, jnp.floating, "floating point")
    check_shape("sinks", sinks, (num_kv_heads * group,), "(N,)")
    return jnp.reshape(jnp.asarray(sinks), (num_kv_heads, group))
