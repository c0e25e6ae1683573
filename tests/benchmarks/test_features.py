"""Random features in the benchmarks: spellings, operations, speed and accuracy tables, what is promised of them."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.measure import flops
from benchmarks.report import report
from benchmarks.suites import accuracy, cases, feature_cases
from tests.benchmarks.results import case, made_up_result, measure

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_spellings_of_features():
    assert cases.spell_mechanism("features:oprf-orf:64+gate") == "features:oprf-orf:64+gate=running"
    assert cases.spell_mechanism("features:trigrf-p_model") == "features:trigrf-p_model:128"
    assert feature_cases.parse("features:aderf-qmc:32+gate=none") == ("aderf", "qmc", 32, "none")
    for text, message in {
        "features:oprf:64": "malformed",
        "features:oprf-orf:0": "malformed",
        "features:nonesuch-orf:64": "unknown component",
        "features:oprf-nonesuch:64": "unknown weights",
        "features:oprf-orf:64+gate=prefix": "unknown gate",
    }.items():
        with pytest.raises(ValueError, match=message):
            cases.spell_mechanism(text)


def test_who_computes_what():
    mechanisms = ["softmax", "lags:2", "features:oprf-orf:64", "features:trigrf-sorf:64+gate=none"]
    assert cases.mechanisms_of("blockwise", mechanisms) == ["softmax", "lags:2"]
    assert cases.mechanisms_of("jax", mechanisms) == ["softmax"]
    assert cases.mechanisms_of("linear", mechanisms) == mechanisms[2:]
    assert cases.mechanisms_of("performer", mechanisms) == ["features:posrf-orf:64"]
    assert main(["attention", "--mechanisms", "softmax", "--implementations", "linear"]) == 2


def dot_flops(jaxpr):
    """Floating-point operations of the matrix products in a jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (x.aval.shape for x in equation.invars)
            summed = int(np.prod([left[i] for i in equation.params["dimension_numbers"][0][0]]))
            total += 2 * summed * int(np.prod(equation.outvars[0].aval.shape))
            assert left and right
    return total


def test_necessary_flops():
    """The formula counts the products of linear attention written plainly, and of its transpose."""
    import jax
    import jax.numpy as jnp

    tokens, width, rows = 16, 8, 24
    weights = jnp.ones((rows, width))

    def plain(query, key, value):
        return jnp.exp(query @ weights.T) @ (jnp.exp(key @ weights.T).T @ value)

    def both(cotangent, *arguments):
        out, vjp = jax.vjp(plain, *arguments)
        return out, vjp(cotangent)

    x = jnp.ones((tokens, width))
    made = {"forward": jax.make_jaxpr(plain)(x, x, x), "both": jax.make_jaxpr(both)(x, x, x, x)}
    for direction, jaxpr in made.items():
        counted = flops.necessary_flops(case(mechanism="features:oprf-orf:24", direction=direction, batch=3))
        assert counted == 3 * 2 * dot_flops(jaxpr.jaxpr), direction
    # Two features come from one row; of the keys there are fewer heads; nothing is known of softmax.
    changed = case(mechanism="features:trigrf-orf:24", direction="forward", kv_heads=1)
    assert flops.necessary_flops(changed) == 2 * 16 * (2 + 1) * 8 * (12 + 24)
    assert flops.necessary_flops(case()) is None


def test_features_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(flops, "MATMUL_SIZE", 64)
    mechanisms = ["softmax", "features:oprf-orf:16", "features:trigrf-sorf:16+gate=none"]
    _, rows = measure(
        tmp_path / "attention.json",
        *("--mechanisms", *mechanisms, "--implementations", "linear", "jax", "performer", "--passes", "both"),
        *("--max-seconds-per-case", "60"),
    )
    for mechanism in mechanisms[1:]:
        row = rows[mechanism, "linear", "both"]
        assert row["status"] == "ok" and row["repeats"] == 2 and set(row["ratios"]) == {"softmax/jax"}
        assert row["matmul_limit_fraction"] > 0 and row["matmul_limit_flops_per_s"] > 0
        assert row["matmul_flops"] == flops.necessary_flops(case(mechanism=mechanism))
    assert "matmul_limit_fraction" not in rows["softmax", "jax", "both"]
    # Its causal form is no peer, installed or not.
    assert rows["features:posrf-orf:16", "performer", "both"]["status"] == "unsupported"


@pytest.fixture
def speed_result(tmp_path):
    """A result file of a made-up run with features."""
    result = made_up_result(tmp_path)
    document = json.loads(result.read_text())
    ours = vars(
        case(mechanism="features:oprf-orf:128", implementation="linear", heads=4, kv_heads=4, head_dim=64)
    )
    peers = ("softmax/blockwise", "softmax/xla", "softmax/jax", "features:posrf-orf:128/performer")
    document["rows"] = [
        ours
        | {"status": "ok", "length": length, "causal": False, "median_s": length * 1e-5, "repeats": 7}
        | {"matmul_limit_fraction": 0.5, "ratios": dict.fromkeys(peers, 0.039)}
        for length in (1024, 2048, 16384)
    ]
    document["rows"].append(
        ours | {"status": "ok", "length": 65536, "heads": 2, "kv_heads": 2, "peak_bytes": 3_900_000_000}
    )
    path = result.with_name("features_made_up.json")
    path.write_text(json.dumps(document))
    result.unlink()
    return path


def test_check_of_features(speed_result, capsys):
    assert main(["check", str(speed_result)]) == 0
    text = capsys.readouterr().out
    # Three softmax peers at three lengths, the factor 25, performer at two, one growth, one peak.
    assert text.count("PASS") == 9 + 1 + 2 + 1 + 1 and "FAIL" not in text and "OPEN" not in text
    assert "25.64 times faster than softmax/jax (at least 25)" in text
    assert "time x 2.00 from T / 2 (at most 2.2)" in text and "peak memory 3.90 GB (below 4)" in text

    good = speed_result.read_text()
    for change, failures in (
        (lambda row: row["ratios"].update({"softmax/xla": 1.0}), 3),
        (lambda row: row["ratios"].update({"softmax/jax": 0.041}), 1),
        (lambda row: row["ratios"].update({"features:posrf-orf:128/performer": 0.8}), 2),
        (lambda row: row.update(median_s=row["length"] ** 2), 1),
        (lambda row: row.update(peak_bytes=4_000_000_000), 1),
    ):
        document = json.loads(good)
        for row in document["rows"]:
            if "ratios" in row or "peak_bytes" in row:
                row.setdefault("ratios", {})
                change(row)
        speed_result.write_text(json.dumps(document))
        assert main(["check", str(speed_result)]) == 1
        assert capsys.readouterr().out.count("FAIL") == failures

    document = json.loads(good)
    for row in document["rows"]:
        row.get("ratios", {}).pop("softmax/jax", None)
    speed_result.write_text(json.dumps(document))
    assert main(["check", str(speed_result)]) == 0
    text = capsys.readouterr().out
    assert text.count("OPEN") == 4 and "no comparison with softmax/jax, which is not measured" in text


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
    import jax

    import jaxattn

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
    readme.write_text(f"{report.ACCURACY}\nold\n{report.RESULTS_END}\nafter\n")
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
    from benchmarks.report.accuracy_tables import digits
    from benchmarks.suites.features import summary

    described = summary([0.1, 0.3, np.nan])
    assert (
        described["median"] == 0.3 and described["mean"] is None and described["samples"] == [0.1, 0.3, None]
    )
    json.dumps(described, allow_nan=False)
    assert [digits(x) for x in (None, 0.2, 1.234, 99.6, 123456.0)] == [
        "not finite",
        "0.20",
        "1.2",
        "100",
        "1.2e+05",
    ]


def test_report_of_features(speed_result, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.START}\nkept\n{report.END}\n{report.SPEED}\nold\n{report.RESULTS_END}\n")
    assert main(["report", "--results", str(speed_result.parent), "--root", str(tmp_path)]) == 0
    text = readme.read_text()
    assert "kept" in text and "old" not in text
    assert "| times faster than `softmax`, jax | 25.6 | 25.6 | 25.6 |" in text
    assert "| growth of the time from T/2 |  | 2.00 |  |" in text
    assert "| share of the matmul limit | 50% | 50% | 50% |" in text
