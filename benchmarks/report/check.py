"""Verdicts: the promised ratios of time and memory, judged from result files."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.measure.results import Row, load
from benchmarks.suites.compiled import key
from benchmarks.suites.ours import CAUSAL, RAGGED, UNIFORM_TREE

VERDICTS = {True: "PASS", False: "FAIL", None: "OPEN"}
# What was promised and found, and whether it holds; None if that was not measured.
Verdict = tuple[str, bool | None]

GATED = "softmax+gate=running"
# The energy gate over plain softmax of the same implementation: (passes, shortest T judged, bound).
GATE_BOUNDS = {"cpu": (("both",), 2048, 1.15), "gpu": (("forward", "both"), 4096, 1.05)}
# From T to 2T, with some room: T×S work or memory would take 4.
BLOCKWISE_MEMORY_GROWTH = 2.5
LINEAR_GROWTH = 2.2
# Of causal random features with 2 heads: (T, bytes).
FEATURES_MEMORY = 65536, 4e9
# Compile time of the gradient of one layer over that of softmax.
COMPILE_TIME = 2.5
# Training steps with random features over those with softmax: (shortest T judged, bound).
TRAINING_STEP = 4096, 1 / 3


FEATURES, TREE = "features:oprf-orf:128/linear", f"tree:64x16/{UNIFORM_TREE}"
EVER = float("inf")
JUDGED = ("attention", "training-step", "compile-time", "compile")
# Forward + backward in float32 on a CPU, B 1, H 64:
# (ours, peer, shortest and longest T judged, the most that our time may be of the peer's, whether it must be less)
TIMES: tuple[tuple[str, str, int, float, float, bool], ...] = (
    (FEATURES, "softmax/blockwise", 1024, EVER, 1.0, True),
    (FEATURES, "softmax/xla", 1024, EVER, 1.0, True),
    (FEATURES, "softmax/jax", 1024, EVER, 1.0, True),
    (FEATURES, "softmax/jax", 16384, 16384, 1 / 25, False),
    (FEATURES, "features:posrf-orf:128/performer", 2048, 16384, 1 / 1.3, False),
    ("softmax/blockwise", "softmax/torch", 2048, 16384, 1.1, False),
    (TREE, "softmax/blockwise", 1024, EVER, 1.0, False),
    (TREE, "softmax/jax", 1024, EVER, 1.0, False),
    (TREE, "softmax/blockwise", 16384, EVER, 1 / 30, False),
    (TREE, "tree:64x2/h-transformer", 1024, EVER, 1 / 1.5, False),
    (TREE + RAGGED, TREE, 1024, EVER, 2.0, False),
    (TREE + CAUSAL, TREE, 1024, EVER, 2.0, False),
)


def run(paths: Sequence[pathlib.Path]) -> int:
    """Prints the verdict on every promise of the files; exit status 1 if one is missed or none can be judged."""
    verdicts = [verdict for path in paths for verdict in judge(load(path, *JUDGED))]
    for text, kept in verdicts:
        print(f"{VERDICTS[kept]}  {text}")
    judged = [kept for _, kept in verdicts if kept is not None]
    if not judged:
        print("nothing to judge: no promised case at a length that counts, and no memory at T and 2T.")
    return 0 if judged and all(judged) else 1


def judge(document: Mapping[str, Any]) -> Iterator[Verdict]:
    """The verdicts on one result."""
    if document["benchmark"] in _OF_COMPILERS:
        yield from _OF_COMPILERS[document["benchmark"]](document["rows"])
        return
    on_cpu, rows = document["provenance"]["platform"] == "cpu", document["rows"]
    if document["benchmark"] == "training-step":
        yield from _training_steps(rows) if on_cpu else ()
        return
    if on_cpu:
        sizes = {"direction": "both", "batch": 1, "head_dim": 64, "dtype": "float32"}
        sized = [row for row in rows if sizes.items() <= row.items()]
        statuses = {(_name(row), row["direction"], row["length"]): row.get("status") for row in rows}
        for row in sized:
            yield from _times(row, statuses)
        for name in (FEATURES, TREE):
            yield from _growth(
                {row["length"]: row for row in sized if _name(row) == name and "median_s" in row}
            )
        yield from _feature_memory([row for row in sized if _name(row) == FEATURES])
    yield from _gates(rows, *GATE_BOUNDS["cpu" if on_cpu else "gpu"])
    yield from _blockwise_memory([row for row in rows if row.get("peak_bytes")])


def _times(row: Row, statuses: Mapping[Any, Any]) -> Iterator[Verdict]:
    """Ratios to peers; a peer of random features that is missing leaves the promise open."""
    is_features = _name(row) == FEATURES
    if "median_s" not in row or (is_features and not row["heads"] == row["kv_heads"] == 4):
        return
    for ours, peer, shortest, longest, bound, strict in TIMES:
        if _name(row) != ours or not shortest <= row["length"] <= longest:
            continue
        ratio = row.get("ratios", {}).get(peer)
        if ratio is not None:
            kept = ratio < bound if strict else ratio <= bound
            yield f"{_where(row)}: {1 / ratio:.2f} times faster than {peer} (at least {1 / bound:.3g})", kept
        elif is_features:
            why = statuses.get((peer, row["direction"], row["length"])) or "not measured"
            yield f"{_where(row)}: no comparison with {peer}, which is {why.replace('_', ' ')}", None


def _growth(found: Mapping[int, Row]) -> Iterator[Verdict]:
    for length, row in found.items():
        if length // 2 in found:
            growth = row["median_s"] / found[length // 2]["median_s"]
            text = f"{_where(row)}: time x {growth:.2f} from T / 2 (at most {LINEAR_GROWTH})"
            yield text, growth <= LINEAR_GROWTH


def _feature_memory(rows: Sequence[Row]) -> Iterator[Verdict]:
    length, limit = FEATURES_MEMORY
    for row in rows:
        if row["length"] == length and row["causal"] and row["heads"] == 2 and row.get("peak_bytes"):
            text = f"{_where(row)}: peak memory {row['peak_bytes'] / 1e9:.2f} GB (below {limit / 1e9:g})"
            yield text, row["peak_bytes"] < limit


def _gates(rows: Sequence[Row], passes: Sequence[str], shortest: int, bound: float) -> Iterator[Verdict]:
    for row in rows:
        peer = f"softmax/{row['implementation']}"
        ratio = row.get("ratios", {}).get(peer)
        judged = row["mechanism"] == GATED and row["direction"] in passes and row["length"] >= shortest
        if judged and ratio is not None:
            yield f"{_where(row)}: {ratio:.3f} of {peer} (at most {bound})", ratio <= bound


def _blockwise_memory(rows: Sequence[Row]) -> Iterator[Verdict]:
    blockwise = [row for row in rows if row["implementation"] == "blockwise"]
    found = {(row["mechanism"], row["direction"], row["head_dim"], row["length"]): row for row in blockwise}
    for (*same, length), row in found.items():
        if (double := found.get((*same, 2 * length))) is not None:
            growth = double["peak_bytes"] / row["peak_bytes"]
            text = f"peak memory x {growth:.2f} from T to 2T (at most {BLOCKWISE_MEMORY_GROWTH})"
            yield f"{_where(row)}: {text}", growth <= BLOCKWISE_MEMORY_GROWTH


def _compiled(rows: Sequence[Row]) -> Iterator[Verdict]:
    found = {key(row): row for row in rows}
    for (*same, length), row in found.items():
        name = " ".join(map(str, (*same, f"T {length}")))
        if row["status"] != "ok":
            yield f"{name}: {row['status']}, {row['message']}", None if row["status"] == "refused" else False
        elif (double := found.get((*same, 2 * length), {})).get("status") == "ok":
            before, after = row["temp_bytes"], double["temp_bytes"]
            text = f"{name}: temporaries {before / 2**20:.0f} MiB, {after / 2**20:.0f} MiB at 2T"
            yield f"{text} (at most x {LINEAR_GROWTH})", after <= LINEAR_GROWTH * before


def _compile_times(rows: Sequence[Row]) -> Iterator[Verdict]:
    for row in rows:
        name = f"{row['mechanism']}, {'causal' if row['causal'] else 'not causal'}"
        if row["status"] == "ok":
            text = f"{name}: compiles in {row['ratio']:.2f} of the time of softmax (at most {COMPILE_TIME})"
            yield text, row["ratio"] <= COMPILE_TIME
        else:
            yield f"{name}: {row['status']}, {row['message']}", None


_OF_COMPILERS = {"compile": _compiled, "compile-time": _compile_times}


def _training_steps(rows: Sequence[Row]) -> Iterator[Verdict]:
    shortest, bound = TRAINING_STEP
    for row in rows:
        ratio = row.get("ratios", {}).get("softmax")
        if ratio is not None and row["attention"].startswith("features:") and row["length"] >= shortest:
            text = f"{row['attention']}, T {row['length']}: {ratio:.3g} of the time of softmax"
            yield f"{text} (at most {bound:.3g})", ratio <= bound


def _name(row: Row) -> str:
    return f"{row['mechanism']}/{row['implementation']}"


def _where(row: Row) -> str:
    mask = "causal" if row["causal"] else "not causal"
    return f"{_name(row)} {row['direction']}, T {row['length']}, H {row['head_dim']}, {mask}"
