"""Tables, plots and verdicts from result files of made-up runs."""

import json
import re
import shlex
import shutil

import pytest

from benchmarks.__main__ import RESULTS, ROOT, main, parser
from benchmarks.report import check, documents
from benchmarks.report.markdown import two_digits
from tests.benchmarks.cases import between, feature_rows, gate_rows, write_result


@pytest.fixture
def gates(tmp_path):
    return write_result(tmp_path / "results/attention_made_up.json", gate_rows())


@pytest.fixture
def features(tmp_path):
    return write_result(tmp_path / "results/features_made_up.json", feature_rows())


def changed(path, change):
    """Applies `change` to every row of a result file."""
    document = json.loads(path.read_text())
    for row in document["rows"]:
        change(row)
    path.write_text(json.dumps(document))


def test_check(gates, capsys):
    assert main(["check", str(gates)]) == 0
    text = capsys.readouterr().out
    assert "softmax+gate=running/xla both, T 2048" in text and "1.100 of softmax/xla (at most 1.15)" in text
    assert "x 2.00 from T to 2T" in text and "FAIL" not in text

    def worse(row):
        if row["mechanism"] != "softmax":
            row["ratios"] = dict.fromkeys(row["ratios"], 1.2)
        if row["implementation"] == "blockwise" and row["length"] == 2048:
            row["peak_bytes"] *= 2

    changed(gates, worse)
    assert main(["check", str(gates)]) == 1
    text = capsys.readouterr().out
    assert text.count("FAIL") == 4 and "x 4.00" in text
    write_result(gates, [])
    assert main(["check", str(gates)]) == 1, "nothing measured is nothing shown"


def test_check_on_a_gpu_is_stricter(gates):
    document = json.loads(gates.read_text())
    document["provenance"]["platform"] = "gpu"
    for row in document["rows"]:
        row["length"] *= 4
    gated = [kept for text, kept in check.judge(document) if "1.100" in text]
    assert gated == [False] * 4


def test_check_of_features(features, capsys):
    assert main(["check", str(features)]) == 0
    text = capsys.readouterr().out
    # Three softmax peers at three lengths, the factor 25, performer at two, one growth, one peak.
    assert text.count("PASS") == 9 + 1 + 2 + 1 + 1 and "FAIL" not in text and "OPEN" not in text
    assert "25.64 times faster than softmax/jax (at least 25)" in text
    assert "time x 2.00 from T / 2 (at most 2.2)" in text and "peak memory 3.90 GB (below 4)" in text

    good = features.read_text()
    for change, failures in (
        (lambda row: row["ratios"].update({"softmax/xla": 1.0}), 3),
        (lambda row: row["ratios"].update({"softmax/jax": 0.041}), 1),
        (lambda row: row["ratios"].update({"features:posrf-orf:128/performer": 0.8}), 2),
        (lambda row: row.update(median_s=row["length"] ** 2), 1),
        (lambda row: row.update(peak_bytes=4_000_000_000), 1),
    ):
        features.write_text(good)
        changed(features, lambda row, change=change: (row.setdefault("ratios", {}), change(row)))
        assert main(["check", str(features)]) == 1
        assert capsys.readouterr().out.count("FAIL") == failures

    features.write_text(good)
    changed(features, lambda row: row.get("ratios", {}).pop("softmax/jax", None))
    assert main(["check", str(features)]) == 0
    text = capsys.readouterr().out
    assert text.count("OPEN") == 4 and "no comparison with softmax/jax, which is not measured" in text


def test_bad_files(tmp_path, capsys):
    assert main(["check", str(tmp_path / "absent.json")]) == 2
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    assert main(["check", str(bad)]) == 2
    assert "not a JSON file" in capsys.readouterr().err
    assert main(["report", "--results", str(tmp_path / "empty"), "--root", str(tmp_path)]) == 2


def test_report(gates, features, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{between('benchmarks:attention')}{between('results:features-speed')}after\n")
    command = ["report", "--results", str(gates.parent), "--root", str(tmp_path)]
    assert main(command) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| `softmax+gate=running`, xla | 1.15 (1.10) | 4.61 (1.10) |" in text
    assert "out of memory" in text and "a processor, 2 cores" in text
    assert "| `softmax`, blockwise | 1 | 2 |" in text, "peak memory, MiB"
    assert "| times faster than `softmax`, jax | 25.6 | 25.6 | 25.6 |" in text
    assert "| growth of the time from T/2 |  | 2.00 |  |" in text
    assert "| share of the matmul limit | 50% | 50% | 50% |" in text
    page = (tmp_path / "docs/benchmarks.md").read_text()
    for figure in ("time", "memory"):
        assert f"figures/attention_made_up_{figure}.png" in page
        assert (tmp_path / f"docs/figures/attention_made_up_{figure}.png").stat().st_size > 1000
    assert main(command) == 0
    assert readme.read_text() == text and (tmp_path / "docs/benchmarks.md").read_text() == page, "idempotent"

    readme.write_text("no markers\n")
    assert main(command) == 0
    assert readme.read_text() == "no markers\n" and "left" in capsys.readouterr().out


def test_report_of_features_alone_leaves_other_tables(features, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(between("benchmarks:attention", "kept") + between("results:features-speed"))
    assert main(["report", "--results", str(features.parent), "--root", str(tmp_path)]) == 0
    assert "kept" in readme.read_text() and "old" not in readme.read_text()


def test_two_digits():
    numbers = (None, 0.2, 1.234, 99.6, 123456.0)
    assert [two_digits(x) for x in numbers] == ["not finite", "0.20", "1.2", "100", "1.2e+05"]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_committed_results_reproduce_the_documented_tables(tmp_path):
    (tmp_path / "docs").mkdir()
    for page in PAGES:
        shutil.copy(page, tmp_path / page.relative_to(ROOT))
    documents.write(RESULTS, tmp_path)
    for page in PAGES:
        assert (tmp_path / page.relative_to(ROOT)).read_text() == page.read_text(), page


def test_documented_commands_parse():
    commands = [c for page in PAGES for c in re.findall(r"python -m benchmarks ([^`|\n]+)", page.read_text())]
    assert len(commands) > 10
    for command in commands:
        parser().parse_args(shlex.split(command))
