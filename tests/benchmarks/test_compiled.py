"""The suite that compiles for accelerators, as far as it goes without their compilers; verdicts and tables."""

import importlib.metadata
import json

import jax
import pytest

from benchmarks.__main__ import main, parser
from benchmarks.report import roofline
from benchmarks.suites import compiled
from jaxattn_train.compiler import targets
from tests.benchmarks.cases import between

SMALL = ["compile", "--lengths", "32", "--heads", "2", "--head-dim", "8", "--dtype", "float32"]
SMALL += ["--implementations", "blockwise", "linear", "hierarchical"]
KERNELS = ["softmax+gate=running", "features:oprf-orf:16", "tree:4x2", "linear:16"]


@pytest.mark.slow
def test_programs_have_the_shapes_of_attention():
    cases = compiled.cases(parser().parse_args([*SMALL, "--kernels", *KERNELS]))
    assert len(cases) == len(KERNELS) * (3 + 2), "decoding is causal"
    for case in cases:
        function, arguments = compiled.program(case)
        out = jax.eval_shape(function, *arguments)
        if case.direction == "decode":
            assert jax.tree.leaves(out[1])[0].shape == (1, 1, 2, 8), case
            continue
        shape = (1, 32, 2, 8)
        assert (out if case.direction == "forward" else out[0]).shape == shape, case
        if case.direction == "both":
            gradients = jax.tree.map(lambda x: x.shape, out[1])
            assert gradients == jax.tree.map(lambda x: x.shape, tuple(arguments[1:])), case


@pytest.mark.slow
def test_blocks_are_whole_layers_of_every_mechanism():
    small = [*SMALL, "--implementations", "block", "--causal", "1", "--kernels", "linear", *KERNELS]
    cases = compiled.cases(parser().parse_args(small))
    assert len(cases) == 4 * 3, "linear:16 is no mechanism of a layer"
    for case in cases:
        function, arguments = compiled.program(case)
        out = jax.eval_shape(function, *arguments)
        decodes = case.direction == "decode"
        found = out if case.direction == "forward" else out[1 if decodes else 0]
        assert found.shape == (1, 1 if decodes else 32, 16), case


def test_a_missing_compiler_is_recorded(tmp_path, monkeypatch):
    def version(name):
        if name in ("jax", "jaxlib"):
            return "1.2.3"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(targets.importlib.metadata, "version", version)
    out = tmp_path / "compiled.json"
    options = ["--kernels", "linear:16", "--directions", "decode", "--out", str(out)]
    assert main([*SMALL, *options, "--targets", "v6e"]) == 0
    (row,) = json.loads(out.read_text())
    assert row["status"] == "unsupported" and "pip install libtpu" in row["message"]
    assert row["versions"]["jax"] == "1.2.3"
    assert main([*SMALL, *options, "--targets", "v6e", "h100"]) == 0
    assert [row["target"] for row in json.loads(out.read_text())] == ["v6e", "h100"], "one row a case"
    assert main(["check", str(out)]) == 1


def test_what_is_refused_is_recorded_and_no_failure(tmp_path, capsys):
    out = tmp_path / "compiled.json"
    options = [
        "--kernels",
        "softmax+gate=prefix",
        "--causal",
        "0",
        "--directions",
        "forward",
        "--out",
        str(out),
    ]
    assert main([*SMALL, *options]) == 0
    (row,) = json.loads(out.read_text())
    assert row["status"] == "refused" and "is_causal must be True" in row["message"]
    main(["check", str(out)])
    assert "OPEN" in capsys.readouterr().out


@pytest.fixture
def result(tmp_path):
    """Made-up rows of one kernel at T and 2T."""
    row = {"kernel": "linear:16", "implementation": "linear", "causal": True, "target": "v5e", "status": "ok"}
    sizes = {"bytes": 2**30, "ideal_bytes": 2**28, "compile_s": 3.2, "versions": {"jax": "1", "libtpu": "2"}}
    rows = [
        row | sizes | {"direction": "both", "tokens": tokens, "temp_bytes": tokens * 2**18}
        for tokens in (1024, 2048)
    ]
    path = tmp_path / "results/compiled.json"
    path.parent.mkdir()
    path.write_text(json.dumps(rows))
    return path


def test_check_of_temporaries(result, capsys):
    assert main(["check", str(result)]) == 0
    assert "temporaries 256 MiB, 512 MiB at 2T" in capsys.readouterr().out
    rows = json.loads(result.read_text())
    rows[1]["temp_bytes"] *= 2
    result.write_text(json.dumps(rows))
    assert main(["check", str(result)]) == 1
    rows[1] |= {"status": "error", "message": "no lowering"}
    result.write_text(json.dumps(rows))
    assert main(["check", str(result)]) == 1
    assert "error, no lowering" in capsys.readouterr().out


def test_report_of_compiled(result, tmp_path):
    page = tmp_path / "docs/benchmarks.md"
    page.parent.mkdir()
    page.write_text(between("results:compiled"))
    assert main(["report", "--results", str(result.parent), "--root", str(tmp_path)]) == 0
    text = page.read_text()
    assert "| `linear:16`, linear, causal | 4.0 ×, 256 MiB |" in text and "`v5e`, T 1,024" in text


def test_predicted_times():
    """From 1,024 tokens to twice as many softmax goes from 1 ms of FLOPs to 4, the tree from 2 ms of bytes to 4."""
    row = {"direction": "both", "causal": True, "target": "v5e", "status": "ok"}
    rows = []
    for tokens in (1024, 2048, 4096):
        times = tokens / 1024
        same = row | {"tokens": tokens}
        softmax = {"kernel": "softmax", "implementation": "splash", "flops": 2 * 197e9 * times**2, "bytes": 1}
        tree = {"kernel": "tree:4x2", "implementation": "pallas", "flops": 1, "bytes": 2 * 819e6 * times}
        rows += [same | softmax, same | tree]
    text = roofline.section({"rows": rows})
    assert "| `softmax`, splash | 1.0 (FLOPs) | 4.0 (FLOPs) | 16 (FLOPs) |" in text
    assert "| `tree:4x2`, pallas | 2.0 (bytes) | 4.0 (bytes) | 8.0 (bytes) |" in text
    assert "`tree:4x2` is predicted to take less time than softmax from about 2,000 tokens on" in text


@pytest.mark.parametrize("target", ["v5e", "h100"])
def test_compiles_where_the_compiler_is_installed(target, tmp_path):
    for package in targets.TARGETS[target].packages:
        pytest.importorskip({"libtpu": "libtpu"}.get(package, package.replace("-", "_")))
    out = tmp_path / "compiled.json"
    options = ["--kernels", "linear:16", "--directions", "decode", "--causal", "1", "--out", str(out)]
    assert main([*SMALL, *options, "--targets", target]) == 0
    (row,) = json.loads(out.read_text())
    assert row["status"] == "ok" and row["bytes"] > 0 and row["ideal_bytes"] > 0
