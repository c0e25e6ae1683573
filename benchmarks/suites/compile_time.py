"""CPU time to trace and compile the gradient of one attention layer, beside softmax.

Seconds of all threads of the process, which other jobs on the machine change less than the time on the clock.
"""

import argparse
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.measure.results import finish, new_document, say, write
from benchmarks.suites.cases import parse
from jaxattn.nn import Attention

SOFTMAX = "softmax"
MECHANISMS = (
    *("softmax", "softmax+gate=running", "softmax+gate=prefix", "lags:8", "linear", "retention"),
    *("features:oprf-orf:128", "features:aderf-ssf:128", "features:oprf-orf:128+gate=running"),
    *("tree:64x16", "tree:64x16+gate=running"),
)


def add_arguments(parser: argparse.ArgumentParser, results: pathlib.Path) -> None:
    """Command-line options."""
    add = parser.add_argument
    add(
        "--mechanisms",
        nargs="+",
        default=list(MECHANISMS),
        help="spelled as for training; the first is softmax",
    )
    add("--causal", type=int, nargs="+", choices=(0, 1), default=[0, 1], help="1: causal, 0: not")
    add("--length", type=int, default=2048, help="tokens T")
    add("--features", type=int, default=128, help="width D")
    add("--heads", type=int, default=4, help="heads N")
    add("--rounds", type=int, default=3, help="rounds through all mechanisms")
    add("--out", type=pathlib.Path, default=results / "compile_time.json", help="result file")


def run(arguments: argparse.Namespace) -> None:
    """Compiles every layer once a round, round by round, and writes medians and their ratios to softmax."""
    cached = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        _run(arguments)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def _run(arguments: argparse.Namespace) -> None:
    names = ("length", "features", "heads", "rounds")
    document = new_document("compile-time", {name: getattr(arguments, name) for name in names})
    cases = [(name, bool(causal)) for causal in arguments.causal for name in arguments.mechanisms]
    samples: dict[tuple[str, bool], list[float]] = {case: [] for case in cases}
    refused: dict[tuple[str, bool], str] = {}
    _seconds(SOFTMAX, True, arguments)  # what only the first compilation of a process does
    for _ in range(arguments.rounds):
        for case in [case for case in cases if case not in refused]:
            try:
                samples[case].append(round(_seconds(*case, arguments), 3))
            except ValueError as error:
                refused[case] = str(error)
            say(f"{case}: {samples[case]} {refused.get(case, '')}")
    for name, causal in cases:
        row = {"mechanism": name, "causal": causal}
        if (name, causal) in refused:
            row |= {"status": "refused", "message": refused[name, causal]}
        else:
            median = statistics.median(samples[name, causal])
            ratio = median / statistics.median(samples[SOFTMAX, causal])
            row |= {
                "status": "ok",
                "median_cpu_s": median,
                "samples_cpu_s": samples[name, causal],
                "ratio": round(ratio, 3),
            }
        document["rows"].append(row)
    write(document, arguments.out)
    finish(document, arguments.out)


def _seconds(mechanism: str, causal: bool, sizes: argparse.Namespace) -> float:
    layer = Attention(sizes.heads, sizes.features, mechanism=parse(mechanism), rngs=nnx.Rngs(0))
    graph, learned, *rest = nnx.split(layer, nnx.Param, ...)
    x = jax.ShapeDtypeStruct((1, sizes.length, sizes.features), jnp.float32)

    def loss(learned: nnx.State, x: jax.Array) -> jax.Array:
        return jnp.square(nnx.merge(graph, learned, *rest)(x, is_causal=causal)).sum()

    jax.clear_caches()
    start = time.process_time()
    jax.jit(jax.grad(loss, (0, 1))).lower(learned, x).compile()
    return time.process_time() - start
