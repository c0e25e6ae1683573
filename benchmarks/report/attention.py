"""Tables of runs of the attention suite."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.measure.results import Row
from benchmarks.report.markdown import INTERRUPTED, figures, grid, machine, status, versions
from benchmarks.suites.cases import PASSES, TITLES
from benchmarks.suites.peers import PEERS


def gates_section(document: Mapping[str, Any], whole: bool) -> str:
    """A table for each pass of time and of memory; times with their ratio to softmax of the same implementation."""
    about = (
        f"{versions(document)} Medians of {document['settings']['repeats']} rounds in which all cases take "
        "turns; in brackets the ratio to plain softmax attention of the same implementation, round by round."
    )
    return _section(document, whole, [f"### {machine(document)}", about], _time_with_ratio)


def features_section(document: Mapping[str, Any], whole: bool) -> str:
    """Times and memory, then the speedup of random features over exact attention and over their peers."""
    return _linear_section("Random features", document, whole)


def trees_section(document: Mapping[str, Any], whole: bool) -> str:
    """Times and memory, then the speedup of trees over exact attention and over their peers."""
    return _linear_section("Attention over trees", document, whole)


def _linear_section(subject: str, document: Mapping[str, Any], whole: bool) -> str:
    settings = document["settings"]
    causal = "causal" if document["rows"][0]["causal"] else "not causal"
    fewer = " (slow cases in fewer: `repeats` in the file)" if settings.get("max_seconds_per_case") else ""
    about = (
        f"{versions(document)} Medians of {settings['repeats']} rounds in which all cases take turns{fewer}; "
        "ratios are medians of those in the same round."
    )
    title = f"### {subject}, {causal}: {machine(document)}"
    return _section(document, whole, [title, about], _time, _speedups)


def _section(
    document: Mapping[str, Any],
    whole: bool,
    parts: list[str],
    time_cell: Callable[[Row], str],
    more: Callable[[Sequence[Row]], list[str]] = lambda rows: [],
) -> str:
    if not document["complete"]:
        parts.append(INTERRUPTED)
    passes = PASSES if whole else ("both",)
    for head_dim in sorted({row["head_dim"] for row in document["rows"]}):
        rows = [row for row in document["rows"] if row["head_dim"] == head_dim]
        for key, cell, title in (
            ("median_s", time_cell, "ms"),
            ("peak_bytes", _memory, "measured peak memory beyond the inputs, MiB"),
        ):
            for direction in passes:
                chosen = [row for row in rows if row["direction"] == direction]
                if any(key in row for row in chosen):
                    parts += [f"{TITLES[direction]}, {title} ({_sizes(rows[0])}):", _by_length(chosen, cell)]
        for direction in passes:
            parts += more([row for row in rows if row["direction"] == direction])
    return "\n\n".join(parts)


def _sizes(row: Row) -> str:
    heads = f"N {row['heads']}" + (f", K {row['kv_heads']}" if row["kv_heads"] != row["heads"] else "")
    mask = "causal" if row["causal"] else "not causal"
    return f"B {row['batch']}, {heads}, H {row['head_dim']}, {row['dtype']}, {mask}"


def _by_length(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """A line for each mechanism and implementation, a column for each length."""
    lengths = sorted({row["length"] for row in rows})
    found = {(_name(row), row["length"]): row for row in rows}
    lines = {
        line: [cell(found[line, length]) if (line, length) in found else "" for length in lengths]
        for line in dict.fromkeys(map(_name, rows))
    }
    return grid("mechanism, implementation", [f"T {length}" for length in lengths], lines)


def _name(row: Row) -> str:
    return f"`{row['mechanism']}`, {row['implementation']}"


def _time(row: Row) -> str:
    return figures(row["median_s"] * 1e3) if "median_s" in row else status(row)


def _time_with_ratio(row: Row) -> str:
    ratio = row.get("ratios", {}).get(f"softmax/{row['implementation']}")
    return _time(row) + ("" if ratio is None or row["mechanism"] == "softmax" else f" ({ratio:.2f})")


def _memory(row: Row) -> str:
    return figures(row["peak_bytes"] / 2**20) if "peak_bytes" in row else status(row)


def _speedups(rows: Sequence[Row]) -> list[str]:
    """For each of our own: times faster than each peer, growth with T, share of the matmul limit."""
    parts = []
    ours = [
        r
        for r in rows
        if r["mechanism"] != "softmax" and r["implementation"] not in PEERS and "median_s" in r
    ]
    for name in dict.fromkeys(map(_name, ours)):
        line = {row["length"]: row for row in ours if _name(row) == name}
        own = {f"{row['mechanism']}/{row['implementation']}" for row in line.values()}
        peers = dict.fromkeys(p for row in line.values() for p in row.get("ratios", {}) if p not in own)
        lines = {}
        for peer in peers:
            ratios = [row.get("ratios", {}).get(peer) for row in line.values()]
            mechanism, implementation = peer.rsplit("/", 1)
            cells = ["" if ratio is None else figures(1 / ratio) for ratio in ratios]
            lines[f"times faster than `{mechanism}`, {implementation}"] = cells
        halves = [line.get(length // 2) for length in line]
        if any(halves):
            lines["growth of the time from T/2"] = [
                "" if half is None else f"{row['median_s'] / half['median_s']:.2f}"
                for row, half in zip(line.values(), halves, strict=True)
            ]
        shares = [row.get("matmul_limit_fraction") for row in line.values()]
        if any(share is not None for share in shares):
            lines["share of the matmul limit"] = ["" if share is None else f"{share:.0%}" for share in shares]
        title = f"{TITLES[ours[0]['direction']]}, {name}:"
        parts += [title, grid("", [f"T {length}" for length in line], lines)]
    return parts
