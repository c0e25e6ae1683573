"""Fused kernels in programs that the compiler cuts among devices: each attends for its own rows and heads.

The compiler cannot partition a kernel, and arrays that are traced do not know how they are cut. Layers, which have
rules for it, say so by `cut_over`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxattn.core.call import Call
from jaxattn.core.mesh import mesh_of

Axes = tuple[str, ...]

_CUT: ContextVar[tuple[Axes, Axes]] = ContextVar("cut", default=((), ()))
# Axes of the arrays of a call: B is the batch, K counts key heads.
_LAYOUTS = {
    **dict.fromkeys(("query", "key", "value", "key_bias", "log_decay"), "BSK"),
    **dict.fromkeys(("mask", "bias"), "BK"),
    **dict.fromkeys(("segment_ids", "query_seq_lengths", "key_value_seq_lengths", "query_offset"), "B"),
    "sinks": "K",
}


class Parts(NamedTuple):
    """A mesh, and its axes over which the batch and the key heads are cut; nothing else is."""

    mesh: AbstractMesh
    batch: Axes
    heads: Axes


@contextlib.contextmanager
def cut_over(batch: Axes = (), heads: Axes = ()) -> Iterator[None]:
    """Within, queries, keys and values are cut over these axes of the mesh."""
    token = _CUT.set((batch, heads))
    try:
        yield
    finally:
        _CUT.reset(token)


def own_part(call: Call) -> Parts | None:
    """How a call is cut, if by rows and key heads alone; None elsewhere, in `jax.shard_map` too."""
    mesh, cut = mesh_of(call.query), _CUT.get()
    if mesh is None or not any(cut) or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return None
    rows, heads = (math.prod(mesh.shape[axis] for axis in axes) for axes in cut)
    divides = call.query.shape[0] % rows == 0 and call.query.shape[2] % heads == 0
    return Parts(mesh, *cut) if rows * heads == mesh.size and divides else None


def on_parts(
    parts: Parts | None,
    run: Callable[..., Array],
    call: Call,
    parameters: Sequence[Array] = (),
    by_head: Sequence[bool] = (),
) -> Array:
    """`run(call, *parameters)`, an array (B, T, K, ...): with `parts` on every device for its own.

    Args:
        parts: from `own_part`.
        run: a function of a call and of parameters.
        call: checked arguments.
        parameters: arrays that rows share.
        by_head: for each, whether its first axis counts key heads; else heads share it, too.
    """
    if parts is None:
        return run(call, *parameters)
    axes = {"B": parts.batch, "K": parts.heads}
    sizes = {"B": call.query.shape[0], "K": call.query.shape[2]}

    def cut(path: Any, x: Array) -> P:
        letters = zip(_LAYOUTS[path[0].name], x.shape, strict=False)
        # Any axis may be 1.
        return P(*(axes[letter] if sizes.get(letter) == size else None for letter, size in letters))

    of_parameters = [P(parts.heads) if own else P() for own in by_head]
    local = jax.shard_map(
        run,
        mesh=parts.mesh,
        in_specs=(jax.tree_util.tree_map_with_path(cut, call), *of_parameters),
        out_specs=P(parts.batch, None, parts.heads),
        check_vma=False,  # what a kernel's results vary over is unknown
    )
    # In jit, as symbolic zeros of a custom_vjp are not there for a shard_map that runs operation by operation.
    return jax.jit(local)(call, *parameters)
