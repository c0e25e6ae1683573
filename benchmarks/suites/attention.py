"""Measures attention: time in turns, memory in fresh processes, one JSON file."""

import argparse
import dataclasses
import gc
import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure.allocator import keep_memory
from benchmarks.measure.flops import MATMUL, MATMUL_FLOPS, big_matmul, necessary_flops
from benchmarks.measure.memory import failure_status, measure_in_fresh_process
from benchmarks.measure.timing import paired_ratio, summary, time_in_turns
from benchmarks.report.results import say, write
from benchmarks.suites.cases import YARDSTICKS, Case, all_cases, spell_mechanism
from benchmarks.suites.prepared import Prepared, TooLarge, prepare


def run(arguments: argparse.Namespace) -> int:
    """Measures every case and writes the JSON after each group, so that an interruption loses one group at most."""
    # Before torch is loaded: threads that spin while they wait would slow everything that takes turns with them, and
    # torch most of all where other programs want the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    mechanisms = list(dict.fromkeys(spell_mechanism(m) for m in arguments.mechanisms))
    cases = all_cases(
        mechanisms=mechanisms,
        implementations=arguments.implementations,
        passes=arguments.passes,
        lengths=arguments.lengths,
        head_dims=arguments.head_dim,
        batch=arguments.batch,
        heads=arguments.heads,
        kv_heads=arguments.kv_heads or arguments.heads,
        dtype=arguments.dtype,
        causal=arguments.causal,
    )
    limit = int(arguments.memory_limit_gib * 2**30) if arguments.memory_limit_gib else None
    rows = {case: dataclasses.asdict(case) for case in cases}
    # Memory first: a GPU belongs to one process at a time, and this one has not touched it yet.
    for i, case in enumerate(c for c in cases if c.direction in arguments.memory_passes):
        rows[case] |= measure_in_fresh_process(case, limit)
        say(f"memory {i + 1}: {_label(case)}: {_memory_text(rows[case])}")

    from benchmarks.measure.provenance import provenance

    kept = arguments.keep_memory and keep_memory()
    document: dict[str, Any] = {
        "benchmark": "attention",
        "complete": False,
        "provenance": provenance(),
        "settings": {
            "repeats": arguments.repeats,
            "max_seconds_per_case": arguments.max_seconds_per_case,
            "memory_limit_bytes": limit,
            "allocator_keeps_memory": kept,
        },
        "rows": list(rows.values()),
    }
    groups: dict[tuple[int, int, str], list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    for group in groups.values():
        measure_group(
            group,
            rows,
            repeats=arguments.repeats,
            limit_bytes=limit,
            max_seconds=arguments.max_seconds_per_case,
        )
        for case in group:
            say(f"{_label(case)}: {_time_text(rows[case])}")
        write(document, arguments.out)
    document["complete"] = True
    write(document, arguments.out)
    say(f"wrote {arguments.out}")
    return 0


def measure_group(
    group: Sequence[Case],
    rows: Mapping[Case, dict[str, Any]],
    *,
    repeats: int,
    limit_bytes: int | None,
    max_seconds: float | None = None,
) -> None:
    """Times the cases of one group in turns and completes their rows; what fails is recorded, not dropped."""
    prepared: dict[str, Prepared] = {}
    for case in group:
        row = rows[case]
        if row.get("status", "ok") != "ok":
            continue  # it already failed in a process of its own
        try:
            ready = prepare(case, limit_bytes)
        except TooLarge as error:
            row |= {"status": "out_of_memory", "message": str(error)}
        except (ValueError, NotImplementedError) as error:
            row |= {"status": "unsupported", "message": f"{type(error).__name__}: {error}"[:300]}
        except Exception as error:
            row |= {"status": failure_status(str(error)), "message": f"{type(error).__name__}: {error}"[:300]}
        else:
            prepared[case.name] = ready
            row |= {"status": "ok", "compile_s": ready.compile_s, "planned_temp_bytes": ready.temp_bytes}
    if any(case.name in prepared and necessary_flops(case) for case in group):
        prepared[MATMUL] = big_matmul()
    samples, errors = time_in_turns(prepared, repeats=repeats, max_seconds=max_seconds)
    for case in group:
        row = rows[case]
        if case.name in errors:
            row |= {"status": failure_status(errors[case.name]), "message": errors[case.name][:300]}
        if case.name not in samples:
            continue
        row |= summary(samples[case.name]) | {"samples_s": [float(f"{s:.4g}") for s in samples[case.name]]}
        row["repeats"] = len(samples[case.name])
        row["ratios"] = {
            peer.name: paired_ratio(samples[case.name], samples[peer.name])
            for peer in group
            if (peer.mechanism == "softmax" or peer.implementation in YARDSTICKS) and peer.name in samples
        }
        flops = necessary_flops(case)
        if flops and MATMUL in samples:
            share = flops / MATMUL_FLOPS * paired_ratio(samples[MATMUL], samples[case.name])
            row |= {
                "matmul_flops": flops,
                "matmul_limit_fraction": share,
                "matmul_limit_flops_per_s": MATMUL_FLOPS / summary(samples[MATMUL])["median_s"],
            }
    prepared.clear()
    gc.collect()


def _label(case: Case) -> str:
    return f"H {case.head_dim} T {case.length} {case.direction} {case.name}"


def _memory_text(row: Mapping[str, Any]) -> str:
    return f"peak {row['peak_bytes'] / 2**20:.1f} MiB" if row["status"] == "ok" else _failure(row)


def _time_text(row: Mapping[str, Any]) -> str:
    if row["status"] != "ok":
        return _failure(row)
    ratio = row["ratios"].get(f"softmax/{row['implementation']}")
    against = "" if ratio is None or row["mechanism"] == "softmax" else f", {ratio:.3f} of softmax"
    if "matmul_limit_fraction" in row:
        against += f", {row['matmul_limit_fraction']:.0%} of the matmul limit"
    return f"{row['median_s'] * 1e3:.2f} ms ({row['q1_s'] * 1e3:.2f}-{row['q3_s'] * 1e3:.2f}){against}"


def _failure(row: Mapping[str, Any]) -> str:
    return f"{row['status']}: {row.get('message', '')}"
