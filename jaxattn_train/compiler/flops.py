"""FLOPs of matrix products, counted in the traced program."""

import math
from typing import Any

import jax
from jax._src.state.types import TransformedRef  # what Pallas' operations take


def product_flops(jaxpr: Any) -> int:
    """FLOPs of all matrix products of one run: two for each multiplication.

    XLA's own count (`compiled.cost_analysis()["flops"]`) takes the body of a loop once; here it counts as often as it
    runs, and what is rematerialised counts again. Of a conditional's branches the most expensive counts; a loop whose
    rounds depend on data counts as one round.

    Args:
        jaxpr: `jax.jit(f).trace(...).jaxpr` or `jax.make_jaxpr(f)(...)`.

    Examples:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones((8, 8))
        >>> product_flops(jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=5))(x))
        5120
    """
    return sum(_of_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _of_equation(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "wgmma_ref":  # accumulator += left · right, parts of buffers in a kernel for GPUs
        accumulator, left, _, *leaves = equation.invars
        tree = parameters["a_transforms_tree"]
        part = TransformedRef(left.aval, tree.unflatten(leaves[: tree.num_leaves]))
        return 2 * math.prod(accumulator.aval.shape) * part.shape[1]
    inside = [product_flops(inner) for inner in _inner(parameters)]
    if name == "cond":
        return max(inside)
    rounds = parameters["length"] if name == "scan" else 1
    if name == "pallas_call":
        rounds = math.prod(parameters["grid_mapping"].grid)
    if name == "mpmd_map":
        rounds = math.prod(math.prod(mesh.shape.values()) for mesh in parameters["meshes"])
    return rounds * sum(inside)


def _inner(parameters: dict[str, Any]) -> list[Any]:
    leaves = jax.tree.leaves(
        list(parameters.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    )
    return [leaf for leaf in leaves if hasattr(leaf, "eqns") or hasattr(getattr(leaf, "jaxpr", None), "eqns")]
