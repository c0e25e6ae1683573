"""Tokens cut among devices along a named axis of a mesh, device n holding the n-th part: what crosses the cuts.

For use in `jax.shard_map`. Everything here has exact gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxattn.core.mesh import vary_like


def check_axis(axis_name: str | None, **refused: Any) -> None:
    """Raises unless `axis_name` is None, or an axis inside `jax.shard_map` beside none of the `refused` arguments."""
    if axis_name is None:
        return
    try:
        if not isinstance(axis_name, str):
            raise NameError
        lax.axis_size(axis_name)
    except NameError as error:
        raise ValueError(
            f"axis_name must be an axis of a mesh over which the tokens are cut, inside jax.shard_map; got "
            f"{axis_name!r}, which is none here."
        ) from error
    for name, value in refused.items():
        if value is not None:
            raise ValueError(f"{name} cannot be used with axis_name; got both.")


def gather(x: Any, axis_name: str | None, axis: int) -> Any:
    """The parts of all devices, one after another; `x` itself without an axis name."""
    return x if x is None or axis_name is None else lax.all_gather(x, axis_name, axis=axis, tiled=True)


def halo(x: Array, axis_name: str, count: int, axis: int) -> Array:
    """The last `count` entries of the part before; zeros on the first device.

    Raises:
        ValueError: a part has fewer.
    """
    length = x.shape[axis]
    if count > length:
        raise ValueError(
            f"axis_name must leave every device at least {count} tokens, which the next one reads; got {length}."
        )
    return _shift(lax.slice_in_dim(x, length - count, length, axis=axis), axis_name, 1)


def exclusive_scan(
    merge: Callable[[Any, Any], Any],
    empty: Any,
    x: Any,
    axis_name: str,
    *,
    segment: Int[Array, " B"] | None = None,
    reverse: bool = False,
) -> Any:
    """What the devices before this one hold, merged in their order, in log2(devices) exchanges.

    Args:
        merge: associative function of two pytrees like x, the one from farther away first.
        empty: the identity of `merge`.
        x: what this device holds, every array with a leading batch axis.
        axis_name: the axis of the mesh.
        segment: the segment that `x` belongs to, that of the device's last token. What is returned then belongs to
            the last segment before this device; segments are contiguous.
        reverse: merge the devices after this one, the nearest last; x is then of the segment of the first token.

    Returns:
        A pytree like x; with `segment` a pair, that and its segment.
    """
    size, index = lax.axis_size(axis_name), lax.axis_index(axis_name)
    if reverse:
        index = size - 1 - index
    given = (x, segment)
    # Which segment nothing belongs to does not matter.
    nothing = vary_like((empty, segment), given, index)

    def merged(early: Any, late: Any) -> Any:
        both = merge(early[0], late[0])
        if segment is None:
            return both, None
        same = early[1] == late[1]
        return jax.tree.map(
            lambda a, b: jnp.where(same.reshape(-1, *(1,) * (a.ndim - 1)), a, b), both, late[0]
        ), late[1]

    def from_before(value: Any, distance: int) -> Any:
        received = jax.tree.map(lambda a: _shift(a, axis_name, -distance if reverse else distance), value)
        return jax.tree.map(lambda a, b: jnp.where(index >= distance, a, b), received, nothing)

    found, distance = from_before(given, 1), 1
    while distance < size - 1:
        found = merged(from_before(found, distance), found)
        distance *= 2
    return found[0] if segment is None else found


def _shift(x: Array, axis_name: str, distance: int) -> Array:
    """From the device `distance` places before, zeros where there is none."""
    size = lax.axis_size(axis_name)
    pairs = [(n, n + distance) for n in range(size) if 0 <= n + distance < size]
    return lax.ppermute(x, axis_name, pairs)
