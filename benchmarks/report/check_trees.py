"""The promises about attention over trees, forward + backward, on a CPU."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.suites import tree_cases

Row = Mapping[str, Any]

PROMISED = {"mechanism": "tree:64x16", "direction": "both", "batch": 1, "head_dim": 64, "dtype": "float32"}
_UNIFORM = f"tree:64x16/{tree_cases.UNIFORM}"
# (ours, peer, shortest T, most that our time may be of the peer's)
TIME_BOUNDS: tuple[tuple[str, str, int, float], ...] = (
    (tree_cases.UNIFORM, "softmax/blockwise", 1024, 1.0),
    (tree_cases.UNIFORM, "softmax/jax", 1024, 1.0),
    (tree_cases.UNIFORM, "softmax/blockwise", 16384, 1 / 30),
    (tree_cases.UNIFORM, f"tree:64x2/{tree_cases.PEER}", 1024, 1 / 1.5),
    (tree_cases.RAGGED, _UNIFORM, 1024, 2.0),
    (tree_cases.CAUSAL, _UNIFORM, 1024, 2.0),
)
# T×T work would take it times 4.
GROWTH_BOUND = 2.2


def judge(document: Mapping[str, Any]) -> Iterator[tuple[str, bool | None]]:
    """(what was promised and found, whether it holds)."""
    if document["provenance"]["platform"] != "cpu":
        return
    rows = [r for r in document["rows"] if PROMISED.items() <= r.items() and "median_s" in r]
    found = {(r["implementation"], r["length"]): r for r in rows}
    for (implementation, length), row in found.items():
        where = f"{row['mechanism']}/{implementation}, T {length}"
        for ours, peer, shortest, bound in TIME_BOUNDS:
            ratio = row.get("ratios", {}).get(peer)
            if ours == implementation and length >= shortest and ratio is not None:
                yield f"{where}: {ratio:.3g} of the time of {peer} (at most {bound:.3g})", ratio <= bound
        half = found.get((implementation, length // 2))
        if half is not None and implementation == tree_cases.UNIFORM:
            growth = row["median_s"] / half["median_s"]
            yield f"{where}: time x {growth:.2f} from T / 2 (at most {GROWTH_BOUND})", growth <= GROWTH_BOUND
