"""The promises about speed and memory, judged from result files."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.report import check_features, check_training_step, check_trees
from benchmarks.report.results import load

JUDGED = ("attention", "training-step")
GATED = "softmax+gate=running"
# The energy gate over plain softmax of the same implementation: (passes, shortest T that counts, bound).
GATE_BOUNDS = {"cpu": (("both",), 2048, 1.15), "gpu": (("forward", "both"), 4096, 1.05)}
# Doubling T may double the blockwise peak, with some room for what does not grow; T×S would take it times 4.
GROWTH_BOUND = 2.5
VERDICTS = {True: "PASS", False: "FAIL", None: "OPEN"}


def run(paths: Sequence[pathlib.Path]) -> int:
    """Prints every promise of the files with its figure; 1 if one is missed or none can be judged."""
    verdicts = [verdict for path in paths for verdict in judge(load(path, *JUDGED))]
    for text, kept in verdicts:
        print(f"{VERDICTS[kept]}  {text}")
    judged = [kept for _, kept in verdicts if kept is not None]
    if not judged:
        print(
            "nothing to judge: no gated case, features or training step at a length that counts, and no memory at T "
            "and 2T."
        )
    return 0 if judged and all(judged) else 1


def judge(document: Mapping[str, Any]) -> Iterator[tuple[str, bool | None]]:
    """(what was promised and found, whether it holds or None if that was not measured)."""
    if document["benchmark"] == "training-step":
        yield from check_training_step.judge(document)
        return
    yield from check_features.judge(document)
    yield from check_trees.judge(document)
    rows = [row for row in document["rows"] if row.get("status") == "ok"]
    passes, shortest, bound = GATE_BOUNDS["cpu" if document["provenance"]["platform"] == "cpu" else "gpu"]
    for row in rows:
        peer = f"softmax/{row['implementation']}"
        if row["mechanism"] == GATED and row["direction"] in passes and row["length"] >= shortest:
            ratio = row.get("ratios", {}).get(peer)
            if ratio is not None:
                yield f"{_where(row)}: {ratio:.3f} of {peer} (at most {bound})", ratio <= bound
    peaks = {
        _key(row, row["length"]): row
        for row in rows
        if row["implementation"] == "blockwise" and row.get("peak_bytes")
    }
    for row in peaks.values():
        double = peaks.get(_key(row, 2 * row["length"]))
        if double is not None:
            growth = double["peak_bytes"] / row["peak_bytes"]
            text = f"{_where(row)}: peak memory x {growth:.2f} from T to 2T (at most {GROWTH_BOUND})"
            yield text, growth <= GROWTH_BOUND


def _key(row: Mapping[str, Any], length: int) -> tuple[Any, ...]:
    return row["mechanism"], row["direction"], row["head_dim"], length


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['mechanism']}/{row['implementation']} {row['direction']}, T {row['length']}, H {row['head_dim']}"
