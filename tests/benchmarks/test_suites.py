"""The harness measures what it says, records what fails, and writes its tables. No test here asserts a time."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks.__main__ import main
from benchmarks.measure import timing
from benchmarks.measure.memory import measure_in_fresh_process
from benchmarks.report import check, report
from benchmarks.suites import cases
from benchmarks.suites.prepared import Prepared
from tests.benchmarks.results import SMALL, case, made_up_result, measure

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def result(tmp_path):
    return made_up_result(tmp_path)


def test_measures_times_and_records_failures(tmp_path):
    document, rows = measure(
        tmp_path / "attention.json",
        *("--mechanisms", "softmax", "ega-running", "--implementations", "xla", "nonesuch", "jax"),
    )
    assert {"commit", "date", "command", "device", "cpu", "cores", "versions"} <= set(document["provenance"])
    for direction in cases.PASSES:
        for mechanism in ("softmax", "softmax+gate=running"):
            row = rows[mechanism, "xla", direction]
            assert row["status"] == "ok" and row["compile_s"] > 0 and len(row["samples_s"]) == 2
            assert 0 < row["q1_s"] <= row["median_s"] <= row["q3_s"]
            assert set(row["ratios"]) == {"softmax/xla", "softmax/jax"}
            failed = rows[mechanism, "nonesuch", direction]
            assert failed["status"] == "unsupported" and "implementation must be one of" in failed["message"]
        assert rows["softmax", "xla", direction]["ratios"]["softmax/xla"] == 1
        # Peers are plain attention only.
        assert ("softmax", "jax", direction) in rows
        assert ("softmax+gate=running", "jax", direction) not in rows


def test_every_mechanism_can_be_measured(tmp_path):
    mechanisms = [f"softmax+gate={name}" for name in ("prefix", "none", "sequence")] + [
        "lags:2",
        "lags:2+gate=none",
    ]
    options = ("--implementations", "xla", "--passes", "forward", "--mechanisms", *mechanisms)
    _, rows = measure(tmp_path / "attention.json", *options)
    assert {name: rows[name, "xla", "forward"]["status"] for name in mechanisms} == dict.fromkeys(
        mechanisms, "ok"
    )


def test_what_does_not_fit_is_recorded(tmp_path):
    out = tmp_path / "attention.json"
    command = [
        "attention",
        *SMALL,
        "--mechanisms",
        "softmax",
        "--implementations",
        "xla",
        "--passes",
        "forward",
    ]
    assert main([*command, "--memory-passes", "--memory-limit-gib", "1e-6", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["status"] == "out_of_memory" and "XLA plans" in row["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
def test_memory_is_measured():
    """What the operating system counts agrees with the T×S arrays that must exist."""
    big = case(length=1024, heads=4, kv_heads=4, direction="forward", causal=False)
    measured = measure_in_fresh_process(big)
    assert measured["status"] == "ok", measured
    scores = 4 * 1024**2 * 4
    assert 0.5 * scores < measured["peak_bytes"] < 6 * scores


def test_memory_of_what_cannot_run():
    assert measure_in_fresh_process(case(implementation="nonesuch"))["status"] == "unsupported"
    assert measure_in_fresh_process(case(), limit_bytes=10)["status"] == "out_of_memory"


def test_cases_take_turns_and_failures_stay_alone():
    now, order = [0.0], []

    def prepared(name, seconds, fails_at=None):
        def run(_, times):
            order.append(name)
            if fails_at is not None and order.count(name) == fails_at:
                raise RuntimeError("RESOURCE_EXHAUSTED: too much")
            now[0] += seconds * times

        return Prepared(lambda: None, run)

    samples, errors = timing.time_in_turns(
        {"a": prepared("a", 1.0), "b": prepared("b", 3.0), "c": prepared("c", 1.0, fails_at=4)},
        repeats=4,
        clock=lambda: now[0],
    )
    assert samples == {"a": pytest.approx([1.0] * 4), "b": pytest.approx([3.0] * 4)}
    assert list(errors) == ["c"] and "RESOURCE_EXHAUSTED" in errors["c"]
    rounds = [name for name in order[6:] if name != "c"]
    assert all({rounds[i], rounds[i + 1]} == {"a", "b"} for i in range(0, 8, 2))


def test_short_cases_are_repeated_inside_a_sample():
    now, calls = [0.0], []

    def run(_, times):
        calls.append(times)
        now[0] += 0.001 * times

    samples, _ = timing.time_in_turns({"a": Prepared(lambda: None, run)}, repeats=2, clock=lambda: now[0])
    assert calls[:2] == [1, 1] and calls[2] in (20, 21) and samples["a"] == pytest.approx([0.001, 0.001])


def test_ratios_are_paired():
    # The machine became ten times slower after the second round; the ratio is untouched.
    assert timing.paired_ratio([1.1, 1.1, 11.0, 11.0], [1.0, 1.0, 10.0, 10.0]) == pytest.approx(1.1)
    assert timing.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median_s": 3.0, "q1_s": 2.0, "q3_s": 4.0}


def test_spellings():
    assert cases.spell_mechanism("ega-none") == "softmax+gate=none"
    assert cases.spell_mechanism("lags:8+gate") == "lags:8+gate=running"
    with pytest.raises(ValueError, match="accepted"):
        cases.spell_mechanism("nonesuch")
    assert main(["attention", "--mechanisms", "nonesuch"]) == 2


def test_check(result, capsys):
    assert main(["check", str(result)]) == 0
    text = capsys.readouterr().out
    assert "softmax+gate=running/xla both, T 2048" in text and "1.100 of softmax/xla (at most 1.15)" in text
    assert "x 2.00 from T to 2T" in text and "FAIL" not in text

    document = json.loads(result.read_text())
    for row in document["rows"]:
        if row["mechanism"] != "softmax":
            row["ratios"] = dict.fromkeys(row["ratios"], 1.2)
        if row["implementation"] == "blockwise" and row["length"] == 2048:
            row["peak_bytes"] *= 2
    result.write_text(json.dumps(document))
    assert main(["check", str(result)]) == 1
    text = capsys.readouterr().out
    assert text.count("FAIL") == 4 and "x 4.00" in text

    document["rows"] = []
    result.write_text(json.dumps(document))
    assert main(["check", str(result)]) == 1, "nothing measured is nothing shown"


def test_check_on_a_gpu_is_stricter(result):
    document = json.loads(result.read_text())
    document["provenance"]["platform"] = "gpu"
    for row in document["rows"]:
        row["length"] *= 4
    gated = [kept for text, kept in check.judge(document) if "1.100" in text]
    assert gated == [False] * 4


def test_bad_files(tmp_path, capsys):
    assert main(["check", str(tmp_path / "absent.json")]) == 2
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    assert main(["check", str(bad)]) == 2
    assert "no JSON file" in capsys.readouterr().err
    bad.write_text("[]")
    assert main(["check", str(bad)]) == 2
    assert main(["report", "--results", str(tmp_path / "empty"), "--root", str(tmp_path)]) == 2


def test_report(result, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    assert main(["report", "--results", str(result.parent), "--root", str(tmp_path)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| `softmax+gate=running`, xla | 1.15 (1.10) | 4.61 (1.10) |" in text
    assert "out of memory" in text and "a processor, 2 cores" in text
    assert "| `softmax`, blockwise | 1 | 2 |" in text, "peak memory, MiB"
    page = (tmp_path / "docs/benchmarks.md").read_text()
    for figure in ("time", "memory"):
        assert f"figures/attention_made_up_{figure}.png" in page
        assert (tmp_path / f"docs/figures/attention_made_up_{figure}.png").stat().st_size > 1000
    assert main(["report", "--results", str(result.parent), "--root", str(tmp_path)]) == 0
    assert readme.read_text() == text and (tmp_path / "docs/benchmarks.md").read_text() == page, "idempotent"

    readme.write_text("no markers\n")
    assert main(["report", "--results", str(result.parent), "--root", str(tmp_path)]) == 0
    assert readme.read_text() == "no markers\n" and "left" in capsys.readouterr().out


def test_needs_none_of_the_training_dependencies():
    code = (
        "import sys; from benchmarks import attention, cases, check, features, memory, prepared, report, timing; "
        "import benchmarks.__main__ as m; m.parser(); cases.spell_mechanism('lags:8+gate'); "
        "print(sorted({'grain', 'tyro', 'tensorboardX', 'beartype', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_slow_cases_take_part_in_fewer_rounds():
    now = [0.0]

    def prepared(seconds):
        def run(_, times):
            now[0] += seconds * times

        return Prepared(lambda: None, run)

    samples, errors = timing.time_in_turns(
        {"fast": prepared(1.0), "slow": prepared(4.0), "slowest": prepared(100.0)},
        repeats=5,
        max_seconds=9.0,
        clock=lambda: now[0],
    )
    assert not errors and {name: len(taken) for name, taken in samples.items()} == {
        "fast": 5,
        "slow": 2,
        "slowest": 1,
    }
    assert timing.paired_ratio(samples["fast"], samples["slow"]) == pytest.approx(0.25)
