"""The promises about attention by random features, forward + backward, on a CPU."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.suites import feature_cases

Row = Mapping[str, Any]

# What is promised is promised of these.
PROMISED = {"mechanism": "features:oprf-orf:128", "implementation": feature_cases.OURS, "direction": "both"}
SIZES = {"batch": 1, "head_dim": 64, "dtype": "float32"}
# (peer, shortest T, longest T, most that our time may be of the peer's)
TIME_BOUNDS: tuple[tuple[str, int, int | None, float], ...] = (
    ("softmax/blockwise", 1024, None, 1.0),
    ("softmax/xla", 1024, None, 1.0),
    ("softmax/jax", 1024, None, 1.0),
    ("softmax/jax", 16384, 16384, 1 / 25),
    (feature_cases.peer_name(128), 2048, 16384, 1 / 1.3),
)
# T×T work would take it times 4.
GROWTH_BOUND = 2.2
# Causal, with 2 heads: (T, bytes).
MEMORY_BOUND = 65536, 4e9


def judge(document: Mapping[str, Any]) -> Iterator[tuple[str, bool | None]]:
    """(what was promised and found, whether it holds or None if the peer was not measured)."""
    if document["provenance"]["platform"] != "cpu":
        return
    rows = [row for row in document["rows"] if (PROMISED | SIZES).items() <= row.items()]
    found = {row["length"]: row for row in rows if "median_s" in row}
    statuses = {(_name(row), row["direction"], row["length"]): row.get("status") for row in document["rows"]}
    for length, row in found.items():
        if row["heads"] == row["kv_heads"] == 4:
            yield from _times(row, statuses)
        half = found.get(length // 2)
        if half is not None:
            growth = row["median_s"] / half["median_s"]
            text = f"{_where(row)}: time x {growth:.2f} from T / 2 (at most {GROWTH_BOUND})"
            yield text, growth <= GROWTH_BOUND
    length, limit = MEMORY_BOUND
    for row in rows:
        if row["length"] == length and row["causal"] and row["heads"] == 2 and row.get("peak_bytes"):
            text = f"{_where(row)}: peak memory {row['peak_bytes'] / 1e9:.2f} GB (below {limit / 1e9:g})"
            yield text, row["peak_bytes"] < limit


def _times(row: Row, statuses: Mapping[tuple[str, str, int], Any]) -> Iterator[tuple[str, bool | None]]:
    for peer, shortest, longest, bound in TIME_BOUNDS:
        if row["length"] < shortest or (longest is not None and row["length"] > longest):
            continue
        ratio = row.get("ratios", {}).get(peer)
        if ratio is not None:
            text = f"{_where(row)}: {1 / ratio:.2f} times faster than {peer} (at least {1 / bound:.3g})"
            # As fast is not faster.
            yield text, ratio <= bound if bound < 1 else ratio < bound
        else:
            why = statuses.get((peer, row["direction"], row["length"])) or "not measured"
            yield f"{_where(row)}: no comparison with {peer}, which is {why.replace('_', ' ')}", None


def _name(row: Row) -> str:
    return f"{row['mechanism']}/{row['implementation']}"


def _where(row: Row) -> str:
    mask = "causal" if row["causal"] else "not causal"
    return f"{_name(row)} {row['direction']}, T {row['length']}, H {row['head_dim']}, {mask}"
