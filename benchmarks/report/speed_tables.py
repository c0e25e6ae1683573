"""The tables of a run that compares random features, or trees, with exact attention and with others of their kind."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import tables
from benchmarks.report.attention_tables import measured
from benchmarks.report.tables import TITLES, Row
from benchmarks.suites import feature_cases, tree_cases

OURS = (feature_cases.OURS, *tree_cases.OURS)


def section(document: Mapping[str, Any], passes: Sequence[str], images: Sequence[str]) -> str:
    """Times and memory as measured, then what they say of what is ours."""
    causal = "causal" if document["rows"][0]["causal"] else "not causal"
    settings = document["settings"]
    fewer = " (slow cases in fewer: `repeats` in the file)" if settings.get("max_seconds_per_case") else ""
    parts = [
        f"### {_subject(document['rows'])}, {causal}: {tables.machine(document)}",
        f"{tables.versions(document)} Medians of {settings['repeats']} rounds in which all cases take turns{fewer}; "
        "ratios are medians of those in the same round.",
    ]
    if not document["complete"]:
        parts.append("**This run was interrupted; what it had measured is shown.**")
    rows = document["rows"]
    for head_dim in sorted({row["head_dim"] for row in rows}):
        chosen = [row for row in rows if row["head_dim"] == head_dim]
        parts += measured(chosen, passes, tables.time_cell)
        for direction in passes:
            parts += _compared([row for row in chosen if row["direction"] == direction])
    return "\n\n".join([*parts, *images, f"Command: `{document['provenance']['command']}`"])


def _subject(rows: Sequence[Row]) -> str:
    over_trees = any(row["implementation"] in tree_cases.OURS for row in rows)
    return "Attention over trees" if over_trees else "Random features"


def _compared(rows: Sequence[Row]) -> list[str]:
    """For each of ours: how many times faster than each peer, growth with T, share of the matmul limit."""
    parts = []
    ours = [row for row in rows if row["implementation"] in OURS and "median_s" in row]
    for name in dict.fromkeys(tables.name(row) for row in ours):
        line = {row["length"]: row for row in ours if tables.name(row) == name}
        lines = {f"times faster than {_spoken(peer)}": _faster(line, peer) for peer in _peers(line)}
        grown = [_growth(line, length) for length in line]
        if any(grown):
            lines["growth of the time from T/2"] = grown
        if any("matmul_limit_fraction" in row for row in line.values()):
            lines["share of the matmul limit"] = [
                f"{row['matmul_limit_fraction']:.0%}" if "matmul_limit_fraction" in row else ""
                for row in line.values()
            ]
        title = TITLES[ours[0]["direction"]]
        parts += [f"{title}, {name}:", tables.grid("", [f"T {length}" for length in line], lines)]
    return parts


def _peers(line: Mapping[int, Row]) -> list[str]:
    own = {f"{row['mechanism']}/{row['implementation']}" for row in line.values()}
    return list(dict.fromkeys(p for row in line.values() for p in row.get("ratios", {}) if p not in own))


def _spoken(peer: str) -> str:
    mechanism, implementation = peer.rsplit("/", 1)
    return f"`{mechanism}`, {implementation}"


def _faster(line: Mapping[int, Row], peer: str) -> list[str]:
    ratios = [row.get("ratios", {}).get(peer) for row in line.values()]
    return ["" if ratio is None else tables.figures(1 / ratio) for ratio in ratios]


def _growth(line: Mapping[int, Row], length: int) -> str:
    half = line.get(length // 2)
    return "" if half is None else f"{line[length]['median_s'] / half['median_s']:.2f}"
