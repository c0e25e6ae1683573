"""What the tests of the benchmarks share: cases, a small measurement, a result file of a made-up run."""

import json

from benchmarks.__main__ import main
from benchmarks.suites import cases

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
    return cases.Case(**(values | changes))


def made_up_result(folder):
    """Writes results/attention_made_up.json into `folder`."""
    rows = []
    for implementation in ("xla", "blockwise"):
        for mechanism in ("softmax", "softmax+gate=running"):
            for length in (1024, 2048):
                seconds = length**2 * 1e-9 * (1.1 if "gate" in mechanism else 1.0)
                rows.append(
                    vars(case(mechanism=mechanism, implementation=implementation, length=length))
                    | {
                        "status": "ok",
                        "median_s": seconds,
                        "q1_s": seconds,
                        "q3_s": seconds,
                        "peak_bytes": length * (2**10 if implementation == "blockwise" else 4 * length),
                        "ratios": {f"softmax/{implementation}": 1.1 if "gate" in mechanism else 1.0},
                    }
                )
    rows.append(
        vars(case(implementation="jax", length=2048)) | {"status": "out_of_memory", "message": "XLA plans"}
    )
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
    path = folder / "results/attention_made_up.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    return path


def measure(out, *options):
    assert main(["attention", *SMALL, "--memory-passes", "--out", str(out), *options]) == 0
    document = json.loads(out.read_text())
    assert document["complete"]
    return document, {(r["mechanism"], r["implementation"], r["direction"]): r for r in document["rows"]}
