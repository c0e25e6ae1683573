"""Timing, memory and result files. No test asserts a time."""

import json
import sys

import pytest

from benchmarks.measure import results, timing
from benchmarks.measure.prepared import Prepared, TooLarge, failure
from benchmarks.suites import sentences
from benchmarks.suites.attention import measure_peak_here, peak_memory
from tests.benchmarks.cases import case


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
@pytest.mark.slow
def test_memory_is_measured():
    """What the operating system counts agrees with the T×S arrays that must exist."""
    big = case(length=1024, heads=4, kv_heads=4, direction="forward", causal=False)
    measured = peak_memory(big)
    assert measured["status"] == "ok", measured
    scores = 4 * 1024**2 * 4
    assert 0.5 * scores < measured["peak_bytes"] < 6 * scores


def test_memory_of_what_cannot_run(capsys):
    """As the fresh process reports it."""
    for changes, limit, status in (
        ({"implementation": "cudnn"}, None, "unsupported"),
        ({}, 10, "out_of_memory"),
    ):
        measure_peak_here({"case": vars(case(**changes)), "limit_bytes": limit})
        assert json.loads(capsys.readouterr().out.removeprefix("MEASURED "))["status"] == status


def test_failures_have_a_status():
    for error, status in (
        (TooLarge("XLA plans too much"), "out_of_memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: too much"), "out_of_memory"),
        (ValueError("no such backend"), "unsupported"),
        (NotImplementedError("not here"), "unsupported"),
        (KeyError("x"), "error"),
        ("a traceback of std::bad_alloc", "out_of_memory"),
        ("a traceback", "error"),
    ):
        assert failure(error)["status"] == status, error


class Clock:
    """A clock that the cases themselves advance, and the order in which they ran."""

    def __init__(self):
        self.now, self.order, self.calls = 0.0, [], []

    def prepared(self, name, seconds, fails_at=None):
        def run(_, times):
            self.order.append(name)
            self.calls.append(times)
            if self.order.count(name) == fails_at:
                raise RuntimeError("RESOURCE_EXHAUSTED: too much")
            self.now += seconds * times

        return Prepared(lambda: None, run)

    def time(self, seconds, fails_at=None, **options):
        prepared = {name: self.prepared(name, s, (fails_at or {}).get(name)) for name, s in seconds.items()}
        return timing.time_interleaved(prepared, clock=lambda: self.now, **options)


def test_rounds_are_interleaved_and_failures_stay_alone():
    clock = Clock()
    samples, errors = clock.time({"a": 1.0, "b": 3.0, "c": 1.0}, fails_at={"c": 4}, repeats=4)
    assert samples == {"a": pytest.approx([1.0] * 4), "b": pytest.approx([3.0] * 4)}
    assert list(errors) == ["c"] and "RESOURCE_EXHAUSTED" in str(errors["c"])
    rounds = [name for name in clock.order[6:] if name != "c"]
    assert all({rounds[i], rounds[i + 1]} == {"a", "b"} for i in range(0, 8, 2))


def test_short_cases_are_repeated_inside_a_sample():
    clock = Clock()
    samples, _ = clock.time({"a": 0.001}, repeats=2)
    assert clock.calls[:2] == [1, 1] and clock.calls[2] in (20, 21)
    assert samples["a"] == pytest.approx([0.001, 0.001])


def test_slow_cases_take_part_in_fewer_rounds():
    seconds = {"fast": 1.0, "slow": 4.0, "slowest": 100.0}
    samples, errors = Clock().time(seconds, repeats=5, max_seconds=9.0)
    assert not errors and {name: len(s) for name, s in samples.items()} == {
        "fast": 5,
        "slow": 2,
        "slowest": 1,
    }
    assert timing.paired_ratio(samples["fast"], samples["slow"]) == pytest.approx(0.25)


def test_ratios_are_paired():
    # The machine became ten times slower after the second round; the ratio is untouched.
    assert timing.paired_ratio([1.1, 1.1, 11.0, 11.0], [1.0, 1.0, 10.0, 10.0]) == pytest.approx(1.1)
    assert timing.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median_s": 3.0, "q1_s": 2.0, "q3_s": 4.0}


def test_only_results_are_loaded(tmp_path):
    path = tmp_path / "folder/result.json"
    document = results.new_document("features", {"seeds": 1})
    assert {"commit", "date", "command", "device", "cpu", "cores", "versions"} <= set(document["provenance"])
    results.finish(document, path)
    assert results.load(path, "features") == document and document["complete"]
    with pytest.raises(ValueError, match="not a result of `python -m benchmarks attention or head-step`"):
        results.load(path, "attention", "head-step")
    for text, message in (("{", "not a JSON file"), ("[]", "not a result")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            results.load(path, "features")


def test_the_default_sentence_encoder_is_read_from_its_package(monkeypatch, tmp_path):
    """So that the recorded command needs no path of one machine."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sentences, "PACKAGE", "a_package_of_a_model")
    assert sentences.find_model(sentences.MINILM) == sentences.MINILM
    (tmp_path / "a_package_of_a_model").mkdir()
    (tmp_path / "a_package_of_a_model/__init__.py").touch()
    assert sentences.find_model(sentences.MINILM) == str(tmp_path / "a_package_of_a_model/model")
    assert sentences.find_model("other/model") == "other/model"
