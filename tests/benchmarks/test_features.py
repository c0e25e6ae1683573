"""The suite of errors of random features."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxattn
from benchmarks.__main__ import main
from benchmarks.suites import accuracy
from benchmarks.suites.features import summary
from tests.benchmarks.cases import between

ACCURACY = [
    "features",
    "--num-features",
    "8",
    "--seeds",
    "2",
    "--length",
    "12",
    "--head-dim",
    "4",
    "--heads",
    "2",
]


def test_accuracy(tmp_path, capsys):
    out = tmp_path / "results/features_accuracy_small.json"
    options = [*ACCURACY, "--problems", "1", "--components", "oprf", "--out", str(out)]
    assert main([*options, "--weights", "orf"]) == 0
    first = json.loads(out.read_text())
    assert main([*options, "--weights", "orf", "gaussian"]) == 0, "only what is missing is measured"
    document = json.loads(out.read_text())
    assert document["complete"] and document["rows"][0] == first["rows"][0] and len(document["rows"]) == 2
    assert "has 1 rows already" in capsys.readouterr().err and len(document["earlier_provenance"]) == 1
    assert [row["weights"] for row in document["rows"]] == ["orf", "gaussian"]

    # The same draws by the library's own functions.
    query, key, value = accuracy.random_data(0, 1, 12, 2, 4, 0.25)
    exact = jaxattn.dot_product_attention(query, key, value, implementation="xla")

    @jax.jit
    def attend(key_):
        feature_map = jaxattn.FeatureMap.create(key_, 4, 8, "oprf", "orf").calibrate(query, key)
        per_key = dataclasses.replace(feature_map, stabilizer="per_key")
        return [jaxattn.random_feature_attention(query, key, value, m) for m in (feature_map, per_key)]

    for name, estimate in zip(
        ("error", "error_per_key"), attend(jax.random.split(jax.random.key(1))[1]), strict=True
    ):
        error = np.linalg.norm(estimate - exact) / np.linalg.norm(exact)
        assert first["rows"][0][name]["samples"][1] == pytest.approx(error, rel=1e-3), name

    assert main([*options, "--weights", "orf", "--causal"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main([*options, "--weights", "nonesuch"]) == 2
    readme = tmp_path / "README.md"
    readme.write_text(f"{between('results:features-accuracy')}after\n")
    assert main(["report", "--results", str(out.parent), "--root", str(tmp_path)]) == 0
    text = readme.read_text()
    assert "plain mean of the values has error" in text and "| `oprf` |" in text and "old" not in text
    assert text.endswith("after\n")
    assert (tmp_path / "docs/figures/features_accuracy_small.png").stat().st_size > 1000


def test_accuracy_on_a_file(tmp_path, capsys):
    generator = np.random.default_rng(0)
    query = generator.normal(size=(3, 20, 4, 4))
    key, value = generator.normal(size=(2, 3, 20, 2, 4))
    path = tmp_path / "layers.npz"
    np.savez(path, q=query, k=key, v=value)
    data = accuracy.load_data(path, 12)
    assert {x.shape for x in data} == {(3, 12, 4, 4)}
    # With the exact weights in place of features nothing is wrong, causal or not.
    for is_causal in (False, True):
        problem = accuracy.pose(data, is_causal)
        mean = accuracy.error_of_plain_mean(problem)
        assert mean.shape == (3,) and (mean > 0.1).all() and (mean < 1).all()
    first = problem.target[:, 0]
    assert np.allclose(first, data.value[:, 0], atol=1e-6), "the first token sees itself alone"

    out = tmp_path / "out.json"
    options = [*ACCURACY, "--components", "trigrf", "--weights", "orf", "--causal", "--out", str(out)]
    assert main([*options, "--qkv", str(path)]) == 0
    document = json.loads(out.read_text())
    assert document["settings"]["data"] == "layers.npz" and document["settings"]["problems"] == 3
    (row,) = document["rows"]
    assert len(row["error_by_problem"]) == 3 and len(row["error"]["samples"]) == 2
    assert "error_per_key" not in row, "trigonometric features are not positive"

    np.savez(path, q=query, k=key)
    assert main([*options, "--qkv", str(path)]) == 2
    assert "lacks v" in capsys.readouterr().err
    np.savez(path, q=query, k=key[:, :5], v=value)
    assert main([*options, "--qkv", str(path)]) == 2


def test_what_is_not_finite_stays_readable():
    described = summary([0.1, 0.3, np.nan])
    assert described["median"] == 0.3 and described["mean"] is None
    assert described["samples"] == [0.1, 0.3, None]
    json.dumps(described, allow_nan=False)
