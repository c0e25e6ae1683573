"""Kernels under meshes with explicit axes, where the sharding of an array is a part of its type."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxattn.core.mesh import mesh_of

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
# From an argument to the sharding of a result, as a pytree of PartitionSpec or a prefix of one.
Rule = Callable[[Any], Any]


def same(argument: Any) -> Any:
    """For a result of the argument's structure and shapes."""
    return jax.tree.map(lambda x: jax.typeof(x).sharding.spec, argument)


def replicated(_: Any) -> PartitionSpec:
    """For a result that every device holds whole."""
    return PartitionSpec()


def query_axes(*axes: str | None) -> Rule:
    """For a result with the batch axis of a query (*B, T, N, H), and then such axes of it: "T", "N", or None."""

    def rule(query: Any) -> PartitionSpec:
        spec = jax.typeof(query).sharding.spec
        by_name = dict(zip("HNT", reversed(spec), strict=False))
        return PartitionSpec(*spec[:-3], *(axis and by_name.get(axis) for axis in axes))

    return rule


# For the output (*B, T, N, V) of attention, and for whatever comes with it, (*B, T, N).
but_width = query_axes("T", "N")


def automatic_axes(*rules: Rule) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorates a function of arrays so that the compiler partitions what happens inside, under every mesh.

    Axes of type `Explicit` become `Auto` inside, and the results are sharded as the rules say. Without such axes
    nothing changes. (Operation by operation, explicit axes stop at the first reshape, scan or slice of a sharded
    axis.)

    Args:
        rules: the n-th gives the sharding of the n-th result from that of the n-th argument. Where both are the state
            of decoding, `same` lets it be the carry of a scan.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            leaves, structure = jax.tree.flatten((args, kwargs))
            arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array)}
            mesh = mesh_of(arrays)
            if mesh is None or not mesh.explicit_axes:
                return function(*args, **kwargs)

            def run(arrays: dict[int, jax.Array]) -> Result:
                args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, x) for i, x in enumerate(leaves)])
                return function(*args, **kwargs)

            given = signature.bind(*args, **kwargs).arguments.values()
            specs = [rule(x) for rule, x in zip(rules, given, strict=False)]
            shardings = jax.tree.map(
                lambda spec: NamedSharding(mesh, spec), tuple(specs) if len(specs) > 1 else specs[0]
            )
            return jax.sharding.auto_axes(run, axes=mesh.explicit_axes, out_sharding=shardings)(arrays)

        return wrapper

    return decorate
