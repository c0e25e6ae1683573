"""Kernels compiled for accelerators that are not present: HBM bytes, temporaries and compile time."""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxattn
from benchmarks.measure.prepared import failure
from benchmarks.measure.results import Row, say, write
from benchmarks.suites import ours
from benchmarks.suites.cases import Case, full_spelling, inner, inputs, parse
from jaxattn.nn import AttentionInputs, TransformerBlock
from jaxattn_train.compiler.targets import TARGETS, Chip, measure_compiled

DIRECTIONS = ("forward", "both", "decode")
MECHANISMS = (
    *("softmax", "softmax+gate=running", "softmax+gate=prefix", "lags:8", "linear", "retention"),
    *("features:oprf-orf:128", "features:oprf-orf:128+gate=running", "features:saderf-sorf:128"),
    "features:posrf-orf:128",
    *("tree:64x16x16", "tree:64x16x16+gate=running"),
)
# Fused kernels exist on one platform each; decoding does not use them.
FUSED = {"splash": "tpu", "cudnn": "cuda", "pallas": "tpu", "mosaic_gpu": "cuda"}
# Feature attention without the features: phi_q, phi_k and v are given.
LINEAR = "linear:128"
# A whole layer of a model, whose kernels are those that are chosen for the platform.
BLOCK = "block"
Program = tuple[Callable[..., Any], tuple[Any, ...]]


def add_arguments(parser: argparse.ArgumentParser, results: pathlib.Path) -> None:
    """Command-line options."""
    add = parser.add_argument
    add("--targets", nargs="+", choices=TARGETS, default=["v5e"], help="devices to compile for")
    lengths = (
        "tokens T; temporaries at T and 2T are compared, where no array of all tokens should fit on the chip"
    )
    add("--lengths", type=int, nargs="+", default=[16384, 65536, 131072], help=lengths)
    kernels = f"mechanisms spelled as for training, and {LINEAR.partition(':')[0]}:NUMBER for features that are given"
    add("--kernels", nargs="+", default=[*MECHANISMS, LINEAR], help=kernels)
    names = (
        "implementations, each compiled with the mechanisms that it has, fused ones where they exist; "
        f"{BLOCK}: a transformer block"
    )
    implementations = ["blockwise", *FUSED, "linear", ours.UNIFORM_TREE, BLOCK]
    add("--implementations", nargs="+", default=implementations, help=names)
    both = "what to compile; both: forward + backward, decode: one token with a state for T"
    add("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS), help=both)
    masks = "1: causal, 0: not"
    add("--causal", type=int, nargs="+", choices=(0, 1), default=[1, 0], help=masks)
    add("--heads", type=int, default=16, help="heads N")
    add("--head-dim", type=int, default=64, help="width H of a head")
    add("--dtype", default="bfloat16", help="of queries, keys and values")
    out = "result file, a JSON list; rows of the same case are replaced, others kept"
    add("--out", type=pathlib.Path, default=results / "compiled.json", help=out)


def run(arguments: argparse.Namespace) -> None:
    """Compiles every case and writes the rows after each."""
    jax.config.update("jax_platforms", "cpu")  # whatever else this machine has is left alone
    old: list[Row] = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    rows = {key(row): row for row in old}
    for target, case in itertools.product(arguments.targets, cases(arguments)):
        if not _exists(case, TARGETS[target].platform):
            continue
        row: dict[str, Any] = {
            "kernel": case.mechanism,
            "implementation": case.implementation,
            "direction": case.direction,
            "causal": case.causal,
            "target": target,
            "tokens": case.length,
        }
        row |= _measure(target, case)
        row["versions"] = TARGETS[target].versions() | {"jaxattn": jaxattn.__version__}
        rows[key(row)] = row
        write(list(rows.values()), arguments.out)
        found = row.get("message", "")
        if row["status"] == "ok":
            moved = f"{row['bytes'] / row['ideal_bytes']:.1f} x ideal" if row["bytes"] else "bytes unknown"
            found = f"{moved}, {row['temp_bytes'] / 2**20:.0f} MiB, {row['compile_s']:.1f} s"
        say(" ".join(map(str, (*key(row), row["status"], found))))


def _measure(target: str, case: Case) -> dict[str, Any]:
    try:
        try:
            function, arguments = program(case)
            jax.eval_shape(function, *arguments)
        except ValueError as error:  # what a mechanism or an implementation refuses, such as to look ahead
            return {"status": "refused", "message": str(error)}
        # A state gives way to the next one, as in a loop that generates.
        donated = (0,) if case.direction == "decode" else ()
        return {"status": "ok"} | measure_compiled(target, function, arguments, donated)
    except Exception as error:
        return failure(error)


def key(row: Row) -> tuple[Any, ...]:
    """What tells the rows of a file apart."""
    return tuple(
        row[name] for name in ("target", "kernel", "implementation", "direction", "causal", "tokens")
    )


def peaks(target: str) -> Chip:
    """The published figures of a device."""
    return TARGETS[target].chip


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Every combination that exists; decoding is causal."""
    sizes = {
        "batch": 1,
        "heads": arguments.heads,
        "kv_heads": arguments.heads,
        "head_dim": arguments.head_dim,
        "dtype": arguments.dtype,
    }
    return [
        Case(kernel, implementation, direction, length, causal=bool(causal), **sizes)
        for kernel in arguments.kernels
        for implementation in arguments.implementations
        if _has(implementation, kernel)
        for causal in arguments.causal
        for direction in arguments.directions
        if causal or direction != "decode"
        for length in arguments.lengths
    ]


def _exists(case: Case, platform: str) -> bool:
    return FUSED.get(case.implementation, platform) == platform and (
        case.implementation not in FUSED or case.direction != "decode"
    )


def _has(implementation: str, kernel: str) -> bool:
    if kernel.startswith("linear:"):
        return implementation in ("linear", "pallas", "mosaic_gpu")
    return implementation == BLOCK or ours.has(implementation, inner(parse(full_spelling(kernel))))


def program(case: Case) -> Program:
    """The function of a case and its arguments.

    Forward and backward: (cotangent, arguments) to the output and the gradients of all arguments.
    """
    if case.mechanism.startswith("linear:"):
        function, arguments = _linear(case)
    elif case.implementation == BLOCK:
        function, arguments = _block(case)
    else:
        function, arguments = _decode(case) if case.direction == "decode" else ours.call(case)
    if case.direction != "both":
        return function, arguments

    def both(cotangent: Any, *args: Any) -> Any:
        out, vjp = jax.vjp(function, *args)
        return out, vjp(cotangent)

    return both, (jax.eval_shape(function, *arguments), *arguments)


def _block(case: Case) -> Program:
    """A block's inputs and learned parameters to its outputs; decoding as in `_decode`."""
    width = case.heads * case.head_dim
    block = TransformerBlock(
        width, case.heads, mechanism=parse(case.mechanism), dtype=jnp.dtype(case.dtype), rngs=nnx.Rngs(0)
    )
    graph, learned, *rest = nnx.split(block, nnx.Param, ...)
    decodes = case.direction == "decode"
    x = jax.ShapeDtypeStruct((case.batch, 1 if decodes else case.length, width), case.dtype)
    if not decodes:
        return lambda learned, x: nnx.merge(graph, learned, *rest)(x, is_causal=case.causal), (learned, x)
    state = jax.eval_shape(lambda: block.init_state(case.batch, case.length, x.dtype))
    return lambda state, learned, x: nnx.merge(graph, learned, *rest).step(state, x), (state, learned, x)


def _linear(case: Case) -> Program:
    num_features = int(case.mechanism.partition(":")[2])
    length = 1 if case.direction == "decode" else case.length
    phi = jax.ShapeDtypeStruct((case.batch, length, case.heads, num_features), case.dtype)
    value = jax.ShapeDtypeStruct((case.batch, length, case.heads, case.head_dim), case.dtype)
    if case.direction != "decode":
        backend = ours.BACKENDS.get(case.implementation, case.implementation)
        options: dict[str, Any] = {"is_causal": case.causal, "implementation": backend}
        return functools.partial(jaxattn.linear_attention, **options), (phi, phi, value)
    sizes = (case.batch, case.heads, num_features)
    state = jax.eval_shape(lambda: jaxattn.linear_attention_init_state(*sizes, value_dim=case.head_dim))
    return jaxattn.linear_attention_step, (state, phi, phi, value)


def _decode(case: Case) -> Program:
    """One new token beside a state, the first argument, that has room for `case.length`."""
    graph, variables = nnx.split(ours.module(case))

    def init(variables: Any) -> Any:
        return nnx.merge(graph, variables).init_state(case.batch, case.length, jnp.dtype(case.dtype))

    def step(state: Any, variables: Any, query: Any, key: Any, value: Any) -> Any:
        return nnx.merge(graph, variables).step(state, query, key, value, AttentionInputs())

    token = inputs(dataclasses.replace(case, length=1))
    return step, (jax.eval_shape(init, variables), variables, *token)
