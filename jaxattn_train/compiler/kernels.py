"""How often Pallas kernels move their operands and results between HBM and the chip, from grids and index maps."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.state.discharge import discharge_state  # index maps read refs of prefetched scalars
from jax.extend.core import Literal, jaxpr_as_fun, jaxprs_in_params

# Primitives whose jaxpr runs once, on the very arguments.
_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
)
Moves = dict[str, tuple[float, ...]]


def kernel_moves(jaxpr: Any) -> Moves:
    """By kernel: for every operand and result, the bytes moved over its own bytes.

    A block is moved when its index differs from that of the step before, the part of it that lies in the array. A
    kernel whose index maps read scalars that are not known while tracing is left out, and so are two of one name that
    move different amounts, and kernels for GPUs, which copy what they need in their bodies.

    Args:
        jaxpr: closed, of a traced program.

    Examples:
        >>> import jax
        >>> from jax.experimental import pallas as pl
        >>> def kernel(x, y):
        ...     y[...] = x[...]
        >>> copy = pl.pallas_call(kernel, jax.ShapeDtypeStruct((8, 128), "float32"), name="copy")
        >>> kernel_moves(jax.make_jaxpr(copy)(jax.numpy.zeros((8, 128))))
        {'copy': (1.0, 1.0)}
    """
    found: dict[str, set[tuple[float, ...]]] = {}
    for name, moves in _walk(jaxpr.jaxpr, dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))):
        found.setdefault(name, set()).add(moves)
    return {name: next(iter(moves)) for name, moves in found.items() if len(moves) == 1}


def _walk(jaxpr: Any, known: dict[Any, Any]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The kernels of a jaxpr, given the values of its variables that do not depend on arguments."""
    for equation in jaxpr.eqns:
        values = [x.val if isinstance(x, Literal) else known.get(x) for x in equation.invars]
        name = equation.primitive.name
        inner = list(jaxprs_in_params(equation.params))
        if name == "pallas_call":
            mapping = equation.params["grid_mapping"]
            scalars = values[: mapping.num_index_operands]
            if all(x is not None for x in scalars):
                yield equation.params["name"], (*(1.0 for _ in scalars), *_moves(mapping, scalars))
        elif name == "mpmd_map":
            continue
        elif inner:
            for body in inner:
                same = name in _CALLS and len(body.invars) == len(values)
                yield from _walk(body, _without_none(body.invars, values) if same else {})
        elif all(x is not None for x in values):
            results = equation.primitive.bind(*values, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
            known.update(zip(equation.outvars, results, strict=True))


def _without_none(variables: Any, values: Any) -> dict[Any, Any]:
    return {x: value for x, value in zip(variables, values, strict=True) if value is not None}


def _moves(mapping: Any, scalars: list[Any]) -> Iterator[float]:
    steps = jnp.asarray(
        np.indices(mapping.grid).reshape(len(mapping.grid), math.prod(mapping.grid)), jnp.int32
    )
    for block in mapping.block_mappings:
        shape = block.array_aval.shape
        sizes = np.array([getattr(size, "block_size", 1) for size in block.block_shape])
        evaluate = jaxpr_as_fun(discharge_state(block.index_map_jaxpr))

        def index(step: Any, evaluate: Any = evaluate, rank: int = len(shape)) -> Any:
            return evaluate(*step, *scalars)[:rank]

        places = np.stack(np.broadcast_arrays(*map(np.asarray, jax.jit(jax.vmap(index, 1))(steps))), axis=1)
        changed = np.concatenate([[True], (places[1:] != places[:-1]).any(axis=1)])
        starts = places[changed] * sizes
        inside = np.clip(np.array(shape) - starts, 0, sizes)
        yield float(inside.prod(axis=1).sum() / np.prod(shape))
