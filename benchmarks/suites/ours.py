"""Registered mechanisms as cases: which implementations they have, and how they are called."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from benchmarks.measure.prepared import Prepared, compile_case
from benchmarks.suites.cases import Case, inner, inputs, parse
from jaxattn import Tree
from jaxattn.nn import MECHANISMS, AttentionInputs, LayerSizes, Mechanism, MechanismModule

# Variants of an implementation: over a tree whose inner nodes have random numbers of children, not a uniform one; and
# causal, whatever --causal says.
RAGGED, CAUSAL = "-ragged", "-causal"
UNIFORM_TREE = "hierarchical"
IMPLEMENTATIONS = tuple(dict.fromkeys(name for row in MECHANISMS.values() for name in row.implementations))
# What result files call the plain forms.
BACKENDS = {"linear": "xla", UNIFORM_TREE: "xla"}
VARIANTS = (UNIFORM_TREE + RAGGED, UNIFORM_TREE + CAUSAL)
# Statistics of queries and keys are taken from so few tokens that they cost nothing.
CALIBRATION_LENGTH = 256


def has(implementation: str, mechanism: Mechanism) -> bool:
    """Whether `mechanism`, without its gates, is measured with `implementation`."""
    return any(
        _base(implementation) in row.implementations
        for row in MECHANISMS.values()
        if type(mechanism) is row.mechanism
    )


def _base(implementation: str) -> str:
    return implementation.removesuffix(RAGGED).removesuffix(CAUSAL)


def prepare(case: Case, limit_bytes: int | None) -> Prepared:
    """Compiles the mechanism's module; its learned parameters get gradients too. See `compile_case`."""
    function, arguments = call(case)
    return compile_case(function, arguments, case.direction, limit_bytes)


def module(case: Case) -> MechanismModule:
    """The module of a case, with random features fitted to its queries and keys."""
    mechanism = _with_backend(parse(case.mechanism), _base(case.implementation))
    built = mechanism.build(LayerSizes(case.heads, case.head_dim, case.kv_heads), rngs=nnx.Rngs(0))
    query, key, _ = inputs(dataclasses.replace(case, length=min(case.length, CALIBRATION_LENGTH)))
    for _, part in nnx.iter_modules(built):
        if hasattr(part, "calibrate"):
            part.calibrate(query, key)
    return built


def call(case: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Attention as a function of query, key, value and the learned parameters, and these arguments."""
    graph, learned, *rest = nnx.split(module(case), nnx.Param, ...)
    sizes = branching(parse(case.mechanism)) if case.implementation.endswith(RAGGED) else None
    given = AttentionInputs(
        tree=None if sizes is None else ragged_tree(case.length, sizes),
        is_causal=case.causal or case.implementation.endswith(CAUSAL),
    )

    def attend(query: Any, key: Any, value: Any, learned: Any) -> Any:
        return nnx.merge(graph, learned, *rest)(query, key, value, given)

    return attend, (*inputs(case), learned)


def _with_backend(mechanism: Any, implementation: str) -> Mechanism:
    """The mechanism on a backend; one that has no backends to choose from as it is."""
    if hasattr(mechanism, "inner"):
        return dataclasses.replace(mechanism, inner=_with_backend(mechanism.inner, implementation))
    if hasattr(mechanism, "implementation"):
        return dataclasses.replace(mechanism, implementation=BACKENDS.get(implementation, implementation))
    return mechanism


def branching(mechanism: Mechanism) -> tuple[int, ...]:
    """Numbers of children from the leaves up.

    Raises:
        ValueError: the mechanism has no uniform tree.
    """
    sizes = getattr(inner(mechanism), "branching", None)
    if sizes is None:
        raise ValueError("a tree must be spelled tree:SIZESxSIZES, as in 'tree:64x16', to be measured.")
    return sizes


def ragged_tree(length: int, sizes: tuple[int, ...]) -> Tree:
    """An ordered tree whose inner nodes have random numbers of children, from half of `sizes` to the whole."""
    rng = np.random.default_rng(0)
    nodes: list[Any] = [1] * length  # numbers of tokens, or lists of nodes
    level = 0
    while len(nodes) > 1:
        size = sizes[min(level, len(sizes) - 1)]
        ends = np.cumsum(rng.integers(-(-size // 2), size + 1, len(nodes)))
        parts = np.split(np.arange(len(nodes)), ends[ends < len(nodes)])
        nodes = [len(p) for p in parts] if level == 0 else [[nodes[i] for i in p] for p in parts]
        level += 1
    return Tree.from_lengths(nodes if level == 1 else nodes[0])


def matmul_flops(case: Case) -> int | None:
    """FLOPs of the matrix products of a case; None where the mechanism does not say.

    None also for causal calls whose FLOPs grow faster than linearly, because mechanisms count a causal call as a full
    one.
    """
    mechanism = inner(parse(case.mechanism))
    sizes = (case.heads, case.head_dim, case.kv_heads)
    try:
        one, double = (mechanism.flops(length, *sizes) for length in (case.length, 2 * case.length))
    except NotImplementedError:
        return None
    if case.causal and double.forward > 3 * one.forward:
        return None
    forward, backward = case.batch * one.forward, case.batch * one.backward
    return {"forward": forward, "backward": backward, "both": forward + backward}[case.direction]
