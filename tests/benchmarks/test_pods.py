"""Training jobs compiled for pods: rows of one run are kept by the next, and become a table."""

import json

from benchmarks.__main__ import main
from benchmarks.suites import pods
from jaxattn_train.tasks.charlm.config import parse
from tests.benchmarks.cases import between


def test_jobs_are_valid_options():
    assert all(parse(job.words()).run.compile_for == job.target for job in pods.JOBS)


def test_rows_are_kept_and_become_a_table(tmp_path, monkeypatch):
    def compiled(job):
        row = {
            "memory_bytes": 2**30,
            "chip_bytes": 2**34,
            "compile_s": 9.0,
            "compile_cpu_s": 17.0,
            "message": "",
            "status": "ok",
            "devices": 16,
            "flops": 197e10,
        }
        found = {"all-gather": (3, 2**21), "all-reduce": (1, 2**20)}
        return {"job": job.name, **job._asdict(), **row, "collectives": found, "versions": {"libtpu": "1"}}

    monkeypatch.setattr(pods, "compile_job", compiled)
    out = tmp_path / "pods.json"
    for part in ("softmax", "48x768"):
        assert main(["pods", "--jobs", part, "--out", str(out)]) == 0
    assert [row["layers"] for row in json.loads(out.read_text())["rows"]] == [12, 48]
    page = tmp_path / "docs/benchmarks.md"
    page.parent.mkdir()
    page.write_text(between("results:pods"))
    assert main(["report", "--results", str(tmp_path), "--root", str(tmp_path)]) == 0
    assert "| 1 of 16 | 17 | 3 | 3 all-gather 2, 1 all-reduce 1 |" in page.read_text()
    assert "`softmax` | 3 | 0.0157 | 10 |" in page.read_text()
