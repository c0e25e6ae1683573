"""Cases, a small measurement and result files of made-up runs, shared by the tests of the benchmarks."""

import json

from benchmarks.__main__ import main
from benchmarks.report import documents
from benchmarks.suites.cases import Case

SMALL = ["--lengths", "16", "--batch", "1", "--heads", "2", "--head-dim", "8", "--repeats", "2"]


def case(**changes):
    values = {
        "mechanism": "softmax",
        "implementation": "xla",
        "direction": "both",
        "length": 16,
        "batch": 1,
        "heads": 2,
        "kv_heads": 2,
        "head_dim": 8,
        "dtype": "float32",
        "causal": True,
    }
    return Case(**(values | changes))


def measure(out, *options):
    """Runs the attention suite at a small size; the document, and its rows by what was measured."""
    assert main(["attention", *SMALL, "--memory-passes", "--out", str(out), *options]) == 0
    document = json.loads(out.read_text())
    assert document["complete"]
    return document, {(r["mechanism"], r["implementation"], r["direction"]): r for r in document["rows"]}


def write_result(path, rows, **changes):
    """Writes the result file of a made-up attention run."""
    document = {
        "benchmark": "attention",
        "complete": True,
        "provenance": {
            "platform": "cpu",
            "cpu": "a processor",
            "cores": 2,
            "device": "cpu",
            "commit": "0123456789abcdef",
            "date": "2026-11-21T00:00:00+00:00",
            "command": "python -m benchmarks attention",
            "versions": {"jax": "0.10.2", "python": "3.11.7"},
        },
        "settings": {"repeats": 10},
        "rows": rows,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document | changes))
    return path


def gate_rows():
    """Gated and plain softmax at two lengths, and a peer that does not fit."""
    rows = []
    for implementation in ("xla", "blockwise"):
        for mechanism, ratio in (("softmax", 1.0), ("softmax+gate=running", 1.1)):
            for length in (1024, 2048):
                seconds = length**2 * 1e-9 * ratio
                times = dict.fromkeys(("median_s", "q1_s", "q3_s"), seconds)
                rows.append(
                    vars(case(mechanism=mechanism, implementation=implementation, length=length))
                    | times
                    | {
                        "status": "ok",
                        "peak_bytes": length * (2**10 if implementation == "blockwise" else 4 * length),
                        "ratios": {f"softmax/{implementation}": ratio},
                    }
                )
    failed = {"status": "out_of_memory", "message": "XLA plans"}
    return [*rows, vars(case(implementation="jax", length=2048)) | failed]


def feature_rows():
    """Random features 25.6 times faster than every peer at three lengths, and their memory at a fourth."""
    sizes = {"heads": 4, "kv_heads": 4, "head_dim": 64}
    ours = vars(case(mechanism="features:oprf-orf:128", implementation="linear", **sizes)) | {"status": "ok"}
    peers = ("softmax/blockwise", "softmax/xla", "softmax/jax", "features:posrf-orf:128/performer")
    times = [
        ours
        | {"length": length, "causal": False, "median_s": length * 1e-5, "repeats": 7}
        | {"matmul_limit_fraction": 0.5, "ratios": dict.fromkeys(peers, 0.039)}
        for length in (1024, 2048, 16384)
    ]
    return [*times, ours | {"length": 65536, "heads": 2, "kv_heads": 2, "peak_bytes": 3_900_000_000}]


def between(name, text="old"):
    """Text between the markers of a table."""
    start, end = next(place.markers for place in documents.PLACES if place.name == name)
    return f"{start}\n{text}\n{end}\n"
