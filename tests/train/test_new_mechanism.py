"""Adding a mechanism: one from outside the package passes the common checks and trains, and what a family touches."""

import ast
import json
import pathlib
import shlex

import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.nn import MECHANISMS, EnergyGated, mechanism_help, parse_mechanism, spell_mechanism
from jaxattn_train.__main__ import main
from tests.common import naive, test_modules
from tests.common.module_table import Module
from tests.recency.mechanism import Recency

ROOT = pathlib.Path(__file__).resolve().parents[2]


def recency(query, key, value, key_bias, rate, **keywords):
    """The reference: for every pair of tokens by itself."""
    age = jnp.arange(query.shape[1])[:, None] - jnp.arange(key.shape[1])
    allowed = naive.allowed_pairs(
        *query.shape[:2], keywords.get("mask"), keywords.get("segment_ids"), keywords.get("is_causal", True)
    )
    scores = naive.dot_products(query, key) + jnp.moveaxis(key_bias, -1, -2)[:, :, None]
    return naive.attend(scores - rate[:, None, None] * age, value, allowed)


ROW = Module("recency", Recency(0.3), recency, ("rate",))


@pytest.mark.parametrize("flax", [False, True], ids=["Attention", "MultiHeadAttention"])
@pytest.mark.parametrize(
    "check",
    [test_modules.test_causal, test_modules.test_padding_reaches_nothing, test_modules.test_reference],
)
@pytest.mark.few(3)
def test_the_common_checks_in_both_layers(check, flax):
    check(ROW, flax)


@pytest.mark.parametrize(
    "check",
    [
        test_modules.test_full_attention,
        test_modules.test_packed_segments,
        test_modules.test_decode,
        test_modules.test_bfloat16,
        test_modules.test_sequences_of_padding_alone,
    ],
)
def test_the_common_checks(check):
    check(ROW)


def test_it_is_spelled_like_any_other():
    assert parse_mechanism("recency:0.5+gate=none") == EnergyGated(Recency(0.5), normalization=None)
    assert spell_mechanism(EnergyGated(Recency(0.5))) == "recency:0.5+gate=running"
    assert MECHANISMS["recency"].help in mechanism_help()
    with pytest.raises(ValueError, match=r"attention 'sofmax': .* accepted: .*recency\[:RATE\]"):
        parse_mechanism("sofmax")
    with pytest.raises(ValueError, match=r"'recency:x': could not convert .* accepted: recency\[:RATE\]\."):
        parse_mechanism("recency:x")


@pytest.mark.slow
def test_it_trains_and_decodes_with_charlm(tmp_path, tiny):
    """A run of the command line: losses fall, its rates have moved, and text is sampled from the decoding state."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    words = shlex.split("--attention recency:0.5+gate --steps 8 --sample-tokens 12 --prompt the")
    assert main(["charlm", *tiny, *words, "--text-file", str(text), "--out", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"][0] for line in lines if line["kind"] == "train"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert len((tmp_path / "run" / "sample.txt").read_text().rstrip("\n")) == 3 + 12


def _names(path):
    """Every identifier and every string but docstrings' in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Name, ast.Attribute, ast.alias)):
            found.add(getattr(node, "id", None) or getattr(node, "attr", None) or node.name)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            found.add(node.value)
    return found


def test_a_family_is_known_in_four_places():
    """Its folder (the row is in its mechanism.py), the faces of the package, the test table, the documentation."""
    files = [p for top in ("jaxattn", "jaxattn_train", "benchmarks") for p in (ROOT / top).rglob("*.py")]
    own = {"CrossCorrelation", "CrossCorrelationModule", "jaxattn.lags", "jaxattn.lags.mechanism", "lags"}
    knowing = {p.relative_to(ROOT) for p in files if _names(p) & own}
    outside = {str(p) for p in knowing if p.parts[:2] != ("jaxattn", "lags")}
    assert outside - {"jaxattn/random_features/weights/ssf.py"} == {
        "jaxattn/__init__.py",
        "jaxattn/nn/__init__.py",
    }
    assert "CrossCorrelation" in (ROOT / "tests/common/module_table.py").read_text(encoding="utf-8")
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any("CrossCorrelation" in page.read_text(encoding="utf-8") for page in pages)
