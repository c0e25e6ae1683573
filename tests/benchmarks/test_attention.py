"""The attention suite: which cases exist, what is measured of them, and what is recorded when they fail."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.measure import prepared
from benchmarks.suites import attention, ours
from benchmarks.suites.cases import PASSES, full_spelling, parse
from tests.benchmarks.cases import SMALL, case, measure

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_times_are_measured_and_failures_recorded(tmp_path):
    _, rows = measure(
        tmp_path / "attention.json",
        *("--mechanisms", "softmax", "ega-running", "--implementations", "xla", "cudnn", "jax"),
    )
    for direction in PASSES:
        for mechanism in ("softmax", "softmax+gate=running"):
            row = rows[mechanism, "xla", direction]
            assert row["status"] == "ok" and row["compile_s"] > 0 and len(row["samples_s"]) == 2
            assert 0 < row["q1_s"] <= row["median_s"] <= row["q3_s"]
            assert set(row["ratios"]) == {"softmax/xla", "softmax/jax"}
            failed = rows[mechanism, "cudnn", direction]
            assert failed["status"] == "unsupported" and "cudnn" in failed["message"]
        assert rows["softmax", "xla", direction]["ratios"]["softmax/xla"] == 1
        # Peers are plain attention only.
        assert ("softmax", "jax", direction) in rows
        assert ("softmax+gate=running", "jax", direction) not in rows


@pytest.mark.slow
def test_every_mechanism_can_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(
        attention, "matmul", lambda: prepared.Prepared(lambda: None, lambda what, times: None)
    )
    mechanisms = [
        *(f"softmax+gate={name}" for name in ("prefix", "none", "sequence")),
        *("lags:2", "lags:2+gate=none"),
        *("features:oprf-orf:16", "features:trigrf-sorf:16+gate=none"),
        *("tree:4x2", "tree:4x2+gate=running"),
    ]
    implementations = (
        "xla",
        "jax",
        "linear",
        ours.UNIFORM_TREE,
        *ours.VARIANTS,
        "performer",
        "h-transformer",
    )
    _, rows = measure(
        tmp_path / "attention.json",
        *("--passes", "forward", "--max-seconds-per-case", "60"),
        *("--implementations", *implementations, "--mechanisms", *mechanisms),
    )
    trees = {"tree:4x2/hierarchical", "tree:4x2+gate=running/hierarchical"}
    for (name, implementation, _), row in rows.items():
        # Their causal forms are no peers, installed or not; h-transformer-1d needs longer sequences.
        unsupported = implementation in ("performer", "h-transformer")
        assert row["status"] == ("unsupported" if unsupported else "ok"), row
        if name.startswith(("features", "tree")) and not unsupported:
            assert row["repeats"] == 2 and set(row["ratios"]) == {"softmax/jax", *trees}
            assert row["matmul_limit_fraction"] > 0 and row["matmul_limit_flops_per_s"] > 0
            assert row["matmul_flops"] == ours.matmul_flops(case(mechanism=name, direction="forward"))
        else:
            assert "matmul_limit_fraction" not in row, "half of causal T×S work is never done"
    assert set(mechanisms) <= {name for name, *_ in rows}
    for peer in (("features:posrf-orf:16", "performer"), ("tree:4x2", "h-transformer")):
        assert (*peer, "forward") in rows


def test_what_does_not_fit_is_recorded(tmp_path):
    out = tmp_path / "attention.json"
    options = (
        "--mechanisms softmax --implementations xla --passes forward --memory-passes --memory-limit-gib 1e-6"
    )
    assert main(["attention", *SMALL, *options.split(), "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["status"] == "out_of_memory" and "XLA plans" in row["message"]


def test_spellings():
    assert full_spelling("ega-none") == "softmax+gate=none"
    assert full_spelling("lags:8+gate") == "lags:8+gate=running"
    assert full_spelling("features:oprf-orf:64+gate") == "features:oprf-orf:64+gate=running"
    assert full_spelling("features:trigrf-p_model") == "features:trigrf-p_model:128"
    for text in ("nonesuch", "features:oprf:64", "features:oprf-orf:0", "features:oprf-orf:64+gate=prefix"):
        assert main(["attention", "--mechanisms", text]) == 2


def test_who_computes_what(capsys):
    features = ["features:oprf-orf:64", "features:trigrf-sorf:64+gate=none"]
    mechanisms = ["softmax", "lags:2", *features, "tree:64x16"]
    for implementation, expected in {
        "blockwise": ["softmax", "lags:2"],
        "jax": ["softmax"],
        "linear": features,
        "performer": ["features:posrf-orf:64"],
        "hierarchical-ragged": ["tree:64x16"],
        "h-transformer": ["tree:64x2"],
    }.items():
        assert attention.mechanisms_of(implementation, mechanisms) == expected, implementation
    assert main(["attention", "--mechanisms", "softmax", "--implementations", "linear"]) == 2
    assert main(["attention", "--implementations", "nonesuch"]) == 2
    # The order is that in which families were imported.
    error = capsys.readouterr().err
    assert "implementations must be of " in error and " xla, " in error and "got nonesuch" in error


def test_a_ragged_tree_covers_its_tokens():
    tree = ours.ragged_tree(50, ours.branching(parse("tree:4x3")))
    assert tree.length == 50
    with pytest.raises(ValueError, match="tree:SIZESxSIZES"):
        ours.branching(parse("tree"))


def test_matmul_flops():
    """The formula counts the products of linear attention written plainly, and of its transpose."""
    tokens, width, rows = 16, 8, 24
    weights = jnp.ones((rows, width))

    def plain(query, key, value):
        return jnp.exp(query @ weights.T) @ (jnp.exp(key @ weights.T).T @ value)

    def both(cotangent, *arguments):
        out, vjp = jax.vjp(plain, *arguments)
        return out, vjp(cotangent)

    def counted(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                left = equation.invars[0].aval.shape
                summed = int(np.prod([left[i] for i in equation.params["dimension_numbers"][0][0]]))
                total += 2 * summed * int(np.prod(equation.outvars[0].aval.shape))
        return total

    x = jnp.ones((tokens, width))
    made = {"forward": jax.make_jaxpr(plain)(x, x, x), "both": jax.make_jaxpr(both)(x, x, x, x)}
    for direction, jaxpr in made.items():
        flops = ours.matmul_flops(case(mechanism="features:oprf-orf:24", direction=direction, batch=3))
        assert flops == 3 * 2 * counted(jaxpr.jaxpr) > 0, direction
    # Two features come from one row; of the keys there are fewer heads; softmax counts unless it is causal.
    changed = case(mechanism="features:trigrf-orf:24", direction="forward", kv_heads=1)
    assert ours.matmul_flops(changed) == 2 * 16 * (2 + 1) * 8 * (12 + 24)
    assert ours.matmul_flops(case()) is None
    assert ours.matmul_flops(case(causal=False, direction="forward")) == 2 * 2 * 2 * 16 * 16 * 8


def test_needs_none_of_the_training_dependencies():
    code = (
        "import sys, benchmarks.__main__ as m; m.parser(); m.attention.full_spelling('lags:8+gate'); "
        "heavy = {'grain', 'tyro', 'tensorboardX', 'beartype', 'matplotlib', 'train.cli', 'train.engine'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
