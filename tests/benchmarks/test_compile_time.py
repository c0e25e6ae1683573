"""Compile times of layers beside softmax."""

import json

from benchmarks.__main__ import main
from tests.benchmarks.cases import between


def test_compile_times_are_judged(tmp_path, capsys):
    out = tmp_path / "compile_time.json"
    sizes = ["--length", "16", "--features", "8", "--heads", "2", "--rounds", "1", "--causal", "0"]
    assert main(["compile-time", *sizes, "--mechanisms", "softmax", "retention", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    softmax, retention = document["rows"]
    assert softmax["ratio"] == 1 and softmax["median_cpu_s"] > 0
    assert retention["status"] == "refused" and "causal" in retention["message"]
    assert main(["check", str(out)]) == 0
    page = tmp_path / "docs/benchmarks.md"
    page.parent.mkdir()
    page.write_text(between("results:compile-time"))
    assert main(["report", "--results", str(tmp_path), "--root", str(tmp_path)]) == 0
    assert "| `retention`, not causal | refused |  |" in page.read_text()
    softmax["ratio"] = 3
    out.write_text(json.dumps(document))
    assert main(["check", str(out)]) == 1
    assert (
        "softmax, not causal: compiles in 3.00 of the time of softmax (at most 2.5)"
        in capsys.readouterr().out
    )
