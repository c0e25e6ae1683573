"""How far a query sees: causality and local windows as one range of keys."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxattn.core.checks import check_dtype

# Query i sees keys i − left to i + right; None is without end.
Reach = tuple[int | None, int | None]

# Wider windows end nowhere; positions plus a width then stay within int32.
_WITHOUT_END = 2**30


def check_window(local_window_size: Any) -> Reach:
    """`local_window_size` as a pair.

    Raises:
        ValueError: it is not None, a whole number or a pair of whole numbers, or one is negative.
    """
    if local_window_size is None:
        return None, None
    pair = local_window_size if isinstance(local_window_size, tuple | list) else (local_window_size,) * 2
    if len(pair) != 2 or not all(_is_width(width) for width in pair):
        raise ValueError(
            "local_window_size must be None, a whole number >= 0 or a pair (left, right) of them, known at trace "
            f"time; got {local_window_size!r}."
        )
    left, right = (None if width >= _WITHOUT_END else int(width) for width in pair)
    return left, right


def _is_width(width: Any) -> bool:
    return isinstance(width, (int, np.integer)) and not isinstance(width, bool) and int(width) >= 0


def check_query_offset(query_offset: Any, batch: int, batched: bool, reach: Reach) -> Any:
    """`query_offset` as (1,) or (B,).

    Raises:
        ValueError: a wrong dtype or shape, or nothing depends on positions.
    """
    if query_offset is None:
        return None
    if reach == (None, None):
        raise ValueError("query_offset is for is_causal and local_window_size; got it with neither.")
    check_dtype("query_offset", query_offset, jnp.integer, "integer")
    accepted = ((), (batch,)) if batched else ((),)
    if jnp.shape(query_offset) not in accepted:
        raise ValueError(
            f"query_offset must have shape {' or '.join(map(str, accepted))}; got {jnp.shape(query_offset)}."
        )
    return jnp.reshape(jnp.asarray(query_offset), -1)


def in_reach(
    reach: Reach,
    query_index: Int[Array, " T"],
    key_index: Int[Array, " S"],
    query_offset: Int[Array, "..."] | None = None,
) -> Bool[Array, "#B 1 1 T S"] | None:
    """Which pairs of positions may attend; None for all."""
    left, right = reach
    query_index = query_index[None, :, None]
    if query_offset is not None:
        query_index = query_index + jnp.reshape(query_offset, (-1, 1, 1))
    allowed = None if right is None else key_index <= query_index + right
    if left is not None:
        near = key_index >= query_index - left
        allowed = near if allowed is None else allowed & near
    return None if allowed is None else allowed[:, None, None]


def key_range(reach: Reach, first: Any, last: Any, query_offset: Array | None) -> tuple[Any, Any]:
    """The first and the last key that queries `first` to `last` see, before the ends of the sequence are heeded.

    None where the reach is without end. For `query_offset` a row it is the range that covers all rows.
    """
    left, right = reach
    lowest, highest = (0, 0) if query_offset is None else (query_offset.min(), query_offset.max())
    return (
        None if left is None else first + lowest - left,
        None if right is None else last + highest + right,
    )


def query_range(reach: Reach, first: Any, last: Any, query_offset: Array | None) -> tuple[Any, Any]:
    """The first and the last query that see keys `first` to `last`, as `key_range`."""
    left, right = reach
    lowest, highest = (0, 0) if query_offset is None else (query_offset.min(), query_offset.max())
    return (
        None if right is None else first - highest - right,
        None if left is None else last - lowest + left,
    )
