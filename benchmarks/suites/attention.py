"""Attention mechanisms side by side: time in interleaved rounds, memory in fresh processes."""

import argparse
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.measure.memory import peak_in_fresh_process, print_peak
from benchmarks.measure.prepared import MATMUL_FLOPS, MATMUL_SIZE, Prepared, matmul
from benchmarks.measure.results import Row, finish, new_document, say, write
from benchmarks.measure.timing import keep_memory, measure_interleaved, paired_ratio
from benchmarks.suites import ours
from benchmarks.suites.cases import PASSES, Case, full_spelling, inner, parse
from benchmarks.suites.peers import PEERS

MATMUL = f"matmul {MATMUL_SIZE}"  # its name among the cases of a group


def add_arguments(parser: argparse.ArgumentParser, results: pathlib.Path) -> None:
    """Command-line options."""
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=[512, 1024, 2048], help="tokens T")
    add("--batch", type=int, default=2, help="sequences B")
    add("--heads", type=int, default=8, help="query heads N")
    add("--kv-heads", type=int, default=None, help="key and value heads K; as many as --heads if not given")
    add("--head-dim", type=int, nargs="+", default=[64], help="width H of a head")
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, default="float32", help="of queries, keys and values")
    add("--causal", action=argparse.BooleanOptionalAction, default=True, help="causal attention")
    spelled = "spelled as for training: softmax, lags:8, features:oprf-orf:128, tree:64x16, softmax+gate=running, …;"
    gates = ["softmax", "softmax+gate=running", "softmax+gate=none"]
    add("--mechanisms", nargs="+", default=gates, help=f"{spelled} ega-X is short for softmax+gate=X")
    names = f"{', '.join((*ours.IMPLEMENTATIONS, *ours.VARIANTS))}, and the peers {', '.join(PEERS)}"
    each = f"{names}; each is measured with the mechanisms that it has"
    add("--implementations", nargs="+", default=["xla", "blockwise", "jax"], help=each)
    both = "what to time; both: forward + backward"
    add("--passes", nargs="+", choices=PASSES, default=list(PASSES), help=both)
    add("--repeats", type=int, default=10, help="rounds through all cases of one size and pass")
    limit = "limit on the total time of a case's rounds; slow cases then take part in fewer, at least one"
    add("--max-seconds-per-case", type=float, default=None, help=limit)
    processes = "passes whose peak memory is measured, each case in a process of its own; empty to skip"
    add("--memory-passes", nargs="*", choices=PASSES, default=["forward", "both"], help=processes)
    fits = "cases that need more are not run; the free memory if not given"
    add("--memory-limit-gib", type=float, default=None, help=fits)
    malloc = "have malloc (glibc) keep freed memory during timing: no cliff where arrays exceed 32 MiB"
    add("--keep-memory", action=argparse.BooleanOptionalAction, default=True, help=malloc)
    add("--out", type=pathlib.Path, default=results / "attention.json", help="result file")


def run(arguments: argparse.Namespace) -> None:
    """Measures every case and writes the result after each group, so that an interruption loses at most one."""
    # Before torch is loaded: threads that spin while they wait slow down everything timed beside them, and torch most
    # of all where other programs want the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sizes = {
        "batch": arguments.batch,
        "heads": arguments.heads,
        "kv_heads": arguments.kv_heads or arguments.heads,
        "dtype": arguments.dtype,
        "causal": arguments.causal,
    }
    mechanisms = list(dict.fromkeys(full_spelling(m) for m in arguments.mechanisms))
    known = (*ours.IMPLEMENTATIONS, *ours.VARIANTS, *PEERS)
    if unknown := [name for name in arguments.implementations if name not in known]:
        raise ValueError(f"implementations must be of {', '.join(known)}; got {', '.join(unknown)}.")
    cases = [
        Case(mechanism, implementation, direction, length, head_dim=head_dim, **sizes)
        for head_dim in arguments.head_dim
        for length in arguments.lengths
        for direction in arguments.passes
        for implementation in arguments.implementations
        for mechanism in mechanisms_of(implementation, mechanisms)
    ]
    if not cases:
        raise ValueError(f"none of {arguments.implementations} implements any of {mechanisms}.")
    limit = int(arguments.memory_limit_gib * 2**30) if arguments.memory_limit_gib else None
    rows = {case: dataclasses.asdict(case) for case in cases}
    # Memory first: a GPU belongs to one process at a time, and this one has not touched it yet.
    for i, case in enumerate(c for c in cases if c.direction in arguments.memory_passes):
        rows[case] |= peak_memory(case, limit)
        say(f"memory {i + 1}: {_label(case)}: {_memory_text(rows[case])}")
    settings = {
        "repeats": arguments.repeats,
        "max_seconds_per_case": arguments.max_seconds_per_case,
        "memory_limit_bytes": limit,
        "allocator_keeps_memory": arguments.keep_memory and keep_memory(),
    }
    document = new_document("attention", settings, list(rows.values()))
    groups: dict[tuple[int, int, str], list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    for group in groups.values():
        # A case that failed in a process of its own is not tried again.
        todo = [case for case in group if rows[case].get("status", "ok") == "ok"]
        found = measure_group(todo, arguments.repeats, limit, arguments.max_seconds_per_case)
        for case in group:
            rows[case] |= found.get(case, {})
            say(f"{_label(case)}: {_time_text(rows[case])}")
        write(document, arguments.out)
    finish(document, arguments.out)


def mechanisms_of(implementation: str, mechanisms: Iterable[str]) -> list[str]:
    """The mechanisms that an implementation is measured with; peers have one of their own."""
    if implementation in PEERS:
        return list(dict.fromkeys(PEERS[implementation].mechanisms([inner(parse(m)) for m in mechanisms])))
    return [m for m in mechanisms if ours.has(implementation, inner(parse(m)))]


def prepare(case: Case, limit_bytes: int | None = None) -> Prepared:
    """Compiles a case.

    Raises:
        TooLarge: its compiled plan needs more than `limit_bytes`, see `compile_case`.
        ValueError, NotImplementedError: the implementation does not do this case.
    """
    make = PEERS[case.implementation].prepare if case.implementation in PEERS else ours.prepare
    return make(case, limit_bytes)


def peak_memory(case: Case, limit_bytes: int | None = None) -> dict[str, Any]:
    """Peak memory of one run beyond its inputs; see `peak_in_fresh_process`."""
    return peak_in_fresh_process({"case": dataclasses.asdict(case), "limit_bytes": limit_bytes})


def measure_peak_here(request: Mapping[str, Any]) -> None:
    """The fresh process of `peak_memory`."""
    print_peak(lambda: prepare(Case(**request["case"]), request["limit_bytes"]))


def measure_group(
    group: Sequence[Case], repeats: int, limit_bytes: int | None, max_seconds: float | None
) -> dict[Case, dict[str, Any]]:
    """Times the cases of one group side by side; those whose FLOPs are known beside a large matrix product."""
    flops = {case: ours.matmul_flops(case) for case in group}
    makers: dict[str, Callable[[], Prepared]] = {
        case.name: functools.partial(prepare, case, limit_bytes) for case in group
    }
    if any(flops.values()):
        makers[MATMUL] = matmul
    yardsticks = (*PEERS, ours.UNIFORM_TREE)
    peers = [case.name for case in group if case.mechanism == "softmax" or case.implementation in yardsticks]
    found = measure_interleaved(makers, peers=peers, repeats=repeats, max_seconds=max_seconds)
    yardstick = found.pop(MATMUL, {})
    for case in group:
        row, needed = found[case.name], flops[case]
        if needed and "median_s" in row and "median_s" in yardstick:
            share = needed / MATMUL_FLOPS * paired_ratio(yardstick["samples_s"], row["samples_s"])
            row |= {
                "matmul_flops": needed,
                "matmul_limit_fraction": share,
                "matmul_limit_flops_per_s": MATMUL_FLOPS / yardstick["median_s"],
            }
    return {case: found[case.name] for case in group}


def _label(case: Case) -> str:
    return f"H {case.head_dim} T {case.length} {case.direction} {case.name}"


def _memory_text(row: Row) -> str:
    return f"peak {row['peak_bytes'] / 2**20:.1f} MiB" if row["status"] == "ok" else _failure(row)


def _time_text(row: Row) -> str:
    if row["status"] != "ok":
        return _failure(row)
    ratio = row["ratios"].get(f"softmax/{row['implementation']}")
    against = "" if ratio is None or row["mechanism"] == "softmax" else f", {ratio:.3f} of softmax"
    if "matmul_limit_fraction" in row:
        against += f", {row['matmul_limit_fraction']:.0%} of the matmul limit"
    return f"{row['median_s'] * 1e3:.2f} ms ({row['q1_s'] * 1e3:.2f}-{row['q3_s'] * 1e3:.2f}){against}"


def _failure(row: Row) -> str:
    return f"{row['status']}: {row.get('message', '')}"
