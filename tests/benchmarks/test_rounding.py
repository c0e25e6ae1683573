"""Errors against float64: the suite around the process that measures, and its table."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.measure import rounding as measure
from benchmarks.suites import rounding
from tests.benchmarks.cases import between


def test_rows_of_two_checkouts_become_one_table(tmp_path, monkeypatch):
    results, page = tmp_path / "results", tmp_path / "docs/benchmarks.md"
    results.mkdir()
    page.parent.mkdir()
    page.write_text(between("results:rounding"))
    commits = {"old": "1111111", "new": "2222222"}
    found = {"old": 1.7e-3, "new": 2.1e-3}

    def output(command, env=None):
        if command[0] == "git":
            return commits[command[2]] + "\n"
        errors = dict.fromkeys(("out", "query", "key", "value"), found[env["PYTHONPATH"]])
        row = {"kernel": "linear", "causal": True, "dtype": "bfloat16", "plan": command[-1], "errors": errors}
        return json.dumps(row) + "\n"

    monkeypatch.setattr(rounding, "_output", output)
    for checkout in ("old", "new", "new"):
        command = [
            "rounding",
            "--checkout",
            checkout,
            "--plans",
            "cpu",
            "--out",
            str(results / "rounding.json"),
        ]
        assert main(command) == 0
    rows = json.loads((results / "rounding.json").read_text())["rows"]
    assert [row["commit"] for row in rows] == list(commits.values()), "rows of a commit are replaced"
    assert main(["report", "--results", str(results), "--root", str(tmp_path)]) == 0
    text = page.read_text()
    assert "| `linear`, causal, bfloat16, as on a CPU | 1.7 → 2.1 |" in text and "1111111 → 2222222" in text


def test_a_checkout_that_is_none(tmp_path, capsys):
    assert main(["rounding", "--checkout", str(tmp_path), "--out", str(tmp_path / "rounding.json")]) == 2
    assert "--checkout: git" in capsys.readouterr().err


@pytest.mark.slow
def test_errors_are_those_of_rounding():
    for dtype, low, high in (("float32", 1e-9, 1e-5), ("bfloat16", 1e-4, 1e-2)):
        assert all(low < error < high for error in measure.errors("linear", True, dtype).values()), dtype
