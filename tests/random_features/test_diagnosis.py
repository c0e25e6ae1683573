"""What `diagnose` says, where the truth is known, and that its figures are what they are called."""

import dataclasses
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn import FeatureMap, diagnose, dot_product_attention, random_feature_attention
from jaxattn.random_features.diagnosis.diagnose import PAIRS
from jaxattn.random_features.diagnosis.verdict import DiagnosisRow, judge

PAIR = ("oprf", "orf")


def _normal(size, length=128, batch=1, heads=2, width=16, seed=0):
    q, k, v = jax.random.normal(jax.random.key(seed), (3, batch, length, heads, width))
    return size * q, size * k, v


def _relative(out, exact):
    return float(jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact))


def _row(size, error, limit=0.3):
    return DiagnosisRow(*PAIR, size, None, error, 0.0, (error,), error**2, error**2, 1.0, limit)


@pytest.fixture(scope="module")
def usable():
    return diagnose(
        *_normal(0.3), pairs=["oprf-gaussian", ("posrf", "gaussian")], num_features=(128, 64), num_draws=6
    )


def test_small_queries_and_keys_are_usable(usable):
    assert usable.verdict == "usable" and usable.num_features in (64, 128)
    assert [pair.verdict for pair in usable.pairs] == ["usable", "usable"]
    assert usable.recommended in {("oprf", "gaussian"), ("posrf", "gaussian")}
    assert max(row.error for row in usable.rows) < 0.2
    assert [(row.component, row.num_features) for row in usable.rows] == list(
        itertools.product(["oprf", "posrf"], [64, 128])
    )


def test_large_queries_and_keys_are_not():
    tensors = _normal(2.0)
    told = diagnose(*tensors, pairs=["oprf-gaussian"], num_features=(64, 256), num_draws=4, norms=())
    assert told.verdict == "not usable" and told.recommended is None and told.num_features is None
    assert told.rows[-1].error > 0.9
    told = diagnose(*tensors, pairs=["oprf-gaussian"], num_features=(64, 256), num_draws=4)
    assert told.verdict == "needs qk-norm" and told.pairs[0].rms == 0.5 and told.num_features == 256
    at_one, at_half = (row for row in told.rows if row.rms is not None)
    assert (at_one.rms, at_one.usable) == (1.0, False)
    assert (at_half.rms, at_half.usable) == (0.5, True)
    # Normalised by hand, the same tensors are usable as they are, with the same figures.
    q, k = (0.5 * x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True)) for x in tensors[:2])
    again = diagnose(q, k, tensors[2], pairs=["oprf-gaussian"], num_features=(64, 256), num_draws=4)
    assert again.verdict == "usable"
    np.testing.assert_allclose(again.rows[-1].error, at_half.error, rtol=1e-4)
    np.testing.assert_allclose(again.averaging_error, at_half.averaging_error, rtol=1e-4)


@pytest.mark.slow
def test_more_features_are_asked_for_and_that_many_are_enough():
    tensors = _normal(0.5)
    told = diagnose(*tensors, pairs=["posrf-gaussian"], num_features=(32, 64, 128), target=0.1, num_draws=16)
    needed = told.num_features
    assert told.verdict == f"needs M >= {needed}" and 128 < needed <= 2048
    assert 0.3 < told.pairs[0].rate < 0.7
    assert "extrapolated" in str(told)
    there = diagnose(*tensors, pairs=["posrf-gaussian"], num_features=(needed,), target=0.1, num_draws=16)
    assert 0.06 < there.rows[0].error < 0.13
    capped = diagnose(
        *tensors,
        pairs=["posrf-gaussian"],
        num_features=(32, 64, 128),
        target=0.1,
        num_draws=16,
        max_features=136,
        norms=(),
    )
    assert capped.verdict == "not usable"


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ((0.8, 0.4), "needs M >= 456"),  # rate 1: no more than 1/2 is believed, 256 (4/3)² = 455.1
        ((0.6 * 2**0.5, 0.6), "needs M >= 1024"),  # rate 1/2: 256 · 2²
        ((0.6 * 2**0.3, 0.6), "needs M >= 2584"),  # rate 0.3: 256 · 2^(10/3) = 2580.3
        ((0.66, 0.6), "not usable"),  # hardly falls
        ((1.6, 1.1), "not usable"),  # no small error yet
        ((float("inf"), 0.5), "not usable"),
        ((0.4, 0.3), "usable"),
    ],
)
def test_extrapolation(errors, verdict):
    rows = [_row(size, error) for size, error in zip((128, 256), errors, strict=True)]
    found = judge(PAIR, rows, 4096)
    assert found.verdict == verdict
    if verdict.startswith("needs"):
        assert judge(PAIR, rows, found.num_features - 8).verdict == "not usable"


def test_extrapolation_from_one_measurement():
    assert judge(PAIR, [_row(64, 0.6)], 4096).verdict == "needs M >= 256"
    assert judge(PAIR, [_row(64, 1.2)], 4096).verdict == "not usable"


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.few(1)
def test_figures_are_what_they_are_called(is_causal):
    """Grouped queries, a batch, padding and a key bias, against the library's own functions."""
    q, k, v = jax.random.normal(jax.random.key(3), (3, 2, 24, 4, 8)) * 0.7
    k, v = k[:, :, :2], v[:, :, :2]
    mask = jnp.arange(24) < jnp.array([[24], [17]])
    bias = jax.random.normal(jax.random.key(4), (1, 24, 4))
    poisoned = (jnp.where(mask[..., None, None], x, jnp.nan) for x in (q, k, v))
    told = diagnose(
        *poisoned, pairs=["saderf-gaussian"], num_features=(32,), num_draws=3, seed=5, token_mask=mask, key_bias=bias,
        scale=0.5, is_causal=is_causal,
    )  # fmt: skip
    row = told.rows[0]

    full = jnp.where(mask[..., None], bias, -jnp.inf)
    kept = mask[..., None, None]
    exact = jnp.where(kept, dot_product_attention(q, k, v, key_bias=full, scale=0.5, is_causal=is_causal), 0)
    averaged = jnp.where(kept, dot_product_attention(0 * q, k, v, key_bias=full, is_causal=is_causal), 0)
    np.testing.assert_allclose(told.averaging_error, _relative(averaged, exact), rtol=1e-4)

    scores = 0.5 * jnp.einsum("btnh,bsnh->bnts", q, jnp.repeat(k, 2, axis=2))
    allowed = mask[:, None, None, :] & mask[:, None, :, None] & (jnp.tri(24, dtype=bool) | (not is_causal))
    logits = jnp.where(allowed, scores + jnp.moveaxis(full, 1, 2)[:, :, None], -jnp.inf)
    attention = jnp.where(allowed, jax.nn.softmax(logits, axis=-1), 0)

    @jax.jit
    def direct(key):
        made = FeatureMap.create(key, 8, 32, "saderf", "gaussian").calibrate(q, k, scale=0.5, token_mask=mask)
        out = random_feature_attention(q, k, v, made, key_bias=full, scale=0.5, is_causal=is_causal)
        wrong, norm = (jnp.square(jnp.where(kept, x, 0)).sum(axis=(0, 1, 3)) for x in (out - exact, exact))
        square = (made.kernel(q, k, scale=0.5) / jnp.exp(scores) - 1) ** 2
        weighted = (attention * square).sum() / (4 * mask.sum())
        plain = square.mean(where=allowed)
        return jnp.sqrt(wrong.sum() / norm.sum()), jnp.sqrt(wrong / norm), weighted, plain

    draws = [direct(key) for key in jax.random.split(jax.random.key(5), 3)]
    errors, by_head, weighted, plain = (np.stack(x) for x in zip(*draws, strict=True))
    np.testing.assert_allclose(row.error, np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(row.error_std, np.std(errors), rtol=1e-2)
    np.testing.assert_allclose(row.error_by_head, np.mean(by_head, axis=0), rtol=1e-4)
    np.testing.assert_allclose(row.relative_variance, np.mean(weighted), rtol=1e-3)
    np.testing.assert_allclose(row.plain_relative_variance, np.mean(plain), rtol=1e-3)


def test_relative_variance_of_posrf_is_the_formula():
    """(exp(|x + y|²) − 1) / M for independent rows."""
    q, k, v = _normal(0.3, length=16)
    told = diagnose(q, k, v, pairs=["posrf-gaussian"], num_features=(64,), num_draws=400)
    x, y = (jnp.moveaxis(t[0], 1, 0) / 2 for t in (q, k))
    square = jnp.square(x[:, :, None] + y[:, None]).sum(axis=-1)
    expected = jnp.expm1(square).mean() / 64
    np.testing.assert_allclose(told.rows[0].plain_relative_variance, expected, rtol=0.15)
    np.testing.assert_allclose(told.sum_square, square.mean(), rtol=1e-4)


def test_the_causal_baseline_is_the_running_average():
    q, k, v = _normal(0.5, length=32)
    told = diagnose(q, k, v, pairs=["posrf-gaussian"], num_features=(16,), num_draws=2, is_causal=True)
    running = jnp.cumsum(v, axis=1) / jnp.arange(1, 33)[:, None, None]
    expected = _relative(running, dot_product_attention(q, k, v, is_causal=True))
    np.testing.assert_allclose(told.averaging_error, expected, rtol=1e-4)


def test_nearly_uniform_attention_is_called_that():
    told = diagnose(*_normal(0.1), pairs=["posrf-gaussian"], num_features=(64,), num_draws=4)
    assert told.verdict == "usable" and told.averaging_error < told.rows[0].error < told.rows[0].limit == 0.1
    assert "nearly uniform" in str(told)


@pytest.mark.slow
def test_long_inputs_are_sampled_and_that_is_said(usable):
    q, k, v = _normal(0.5, length=96)
    arguments = {"pairs": ["oprf-mm"], "num_features": (32,), "num_draws": 4, "is_causal": True}
    told = diagnose(q, k, v, max_tokens=24, **arguments)
    assert told.num_queries == 24 and "24 evenly spaced ones measured" in str(told)
    assert usable.num_queries == 128 and "all measured" in str(usable)
    whole = diagnose(q, k, v, **arguments)
    np.testing.assert_allclose(told.rows[0].error, whole.rows[0].error, rtol=0.3)
    # All keys took part: those of the sampled queries alone give another average.
    at = np.linspace(0, 95, 24).round().astype(int)
    exact = dot_product_attention(q, k, v, is_causal=True)[:, at]
    running = (jnp.cumsum(v, axis=1) / jnp.arange(1, 97)[:, None, None])[:, at]
    np.testing.assert_allclose(told.averaging_error, _relative(running, exact), rtol=1e-4)


def test_without_a_batch_and_the_same_again(usable):
    q, k, v = (x[0] for x in _normal(0.3))
    again = diagnose(
        q, k, v, pairs=["oprf-gaussian", ("posrf", "gaussian")], num_features=(64, 128), num_draws=6
    )
    assert again == usable


def test_default_pairs_exist():
    for pair in PAIRS:
        component, weights = pair.split("-")
        assert component in jaxattn.COMPONENTS and weights in jaxattn.WEIGHTS


@pytest.mark.parametrize("pair", ["trigrf-sgq", "hrf-ssr", "poisrf-fastfood"])
@pytest.mark.few(1)
def test_signs_and_features_of_several_rows(pair):
    told = diagnose(*_normal(0.3, length=32), pairs=[pair], num_features=(96,), num_draws=2, norms=())
    assert np.isfinite(told.rows[0].error) and told.rows[0].num_features == 96
    refused = pair == "trigrf-sgq"
    assert refused == ("allow_unusable" in str(told)) and (told.verdict == "not usable" or not refused)


def test_the_table_has_every_pair_and_figure(usable):
    text = str(usable)
    for row in usable.rows:
        line = next(line for line in text.splitlines() if line.startswith(f"{row.component}-{row.weights} "))
        assert f"{row.error:.3g} ± {row.error_std:.2g}" in line
    assert "Verdict: usable: " in text
    assert "exact softmax attention costs less" in str(dataclasses.replace(usable, num_features=128))


def test_plot_writes_a_file(usable, tmp_path):
    figure = usable.plot(tmp_path / "diagnosis.png")
    assert (tmp_path / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert {"oprf-gaussian", "posrf-gaussian", "averaging the values"} <= set(labels)
    assert usable.plot() is not figure


def test_plot_without_matplotlib(usable, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="matplotlib"):
        usable.plot()


@pytest.mark.usefixtures("no_typecheck")
@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("query", {"query": jnp.ones((4, 2))}),
        ("query", {"query": jnp.full((4, 2, 8), jnp.nan)}),
        ("key", {"key": jnp.ones((4, 2, 7))}),
        ("value", {"value": jnp.ones((5, 2, 8))}),
        ("value", {"value": jnp.zeros((4, 2, 8))}),
        ("pairs", {"pairs": []}),
        ("pairs", {"pairs": ["oprf"]}),
        ("component", {"pairs": ["none-orf"]}),
        ("weights", {"pairs": [("oprf", "none")]}),
        ("num_features", {"num_features": ()}),
        ("num_features", {"num_features": (0,)}),
        ("scale", {"scale": -1.0}),
        ("scale", {"scale": "1"}),
        ("key_bias", {"key_bias": jnp.ones((3, 2))}),
        ("key_bias", {"key_bias": jnp.full((4, 2), jnp.nan)}),
        ("token_mask", {"token_mask": jnp.ones(4)}),
        ("token_mask", {"token_mask": jnp.ones(3, bool)}),
        ("target", {"target": 0.0}),
        ("num_draws", {"num_draws": 0}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_features", {"max_features": 0}),
        ("norms", {"norms": (0.0,)}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments_are_named(named, change):
    arguments = {name: jnp.ones((4, 2, 8)) for name in ("query", "key", "value")} | change
    with pytest.raises(ValueError, match=named):
        diagnose(**arguments)
