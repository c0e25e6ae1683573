"""Fused kernels interpreted on a CPU, which finds races and reads of what was never written: values and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # where found races are
from jax.experimental.pallas import tpu as pltpu

import jaxattn
from jaxattn.linear.attention import How, attend_tiled
from jaxattn.linear.implementation import Fused, choose_implementation, pallas_cannot
from jaxattn.linear.plan import choose_tiling
from tests.common.transformations import assert_transforms
from tests.linear import fused_cases
from tests.linear.fused_cases import Case, checked

INTERPRETED = pltpu.InterpretParams(detect_races=True)


def check(case, dtype=jnp.float32, **tolerances):
    """Without a race."""
    with pltpu.force_tpu_interpret_mode(INTERPRETED):
        fused_cases.check(case, Fused(case.chunk), dtype, **tolerances)
    assert not interpreter.races.races_found


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_features_in_segments(causal):
    """Segments across chunks, the last of them cut; groups whose heads weigh keys apart; removed keys."""
    check(Case(causal=causal, segments=5, heads=2, kv_heads=1, bias_heads=2), rtol=1e-4, atol=1e-5)


CASES = {
    "trigonometric": Case(("trigrf", "orf", {}, 12), size=0.5),
    "learned a": Case(("gerf", "gaussian", {}, 12), bias=None),
    "rotated": Case(("sderf", "orf", {}, 12), heads=4),
    "balanced": Case(("aderf", "orf", {}, 12), heads=4, batch=2),
    "scaled": Case(("saderf", "fastfood", {}, 12)),
    "both signs": Case(("posrf", "orf", {"hyperbolic": True}, 12)),
    "learned weights a head": Case(("oprf", "fastfood_learnable", {}, 12), per_head=True, heads=4),
    "per_key": Case(stabilizer="per_key"),
    "large logits": Case(size=8.0),
    "biases": Case(bias=30.0, segments=5),
    "large biases": Case(bias=1000.0),
    "one token": Case(length=1, key_length=4),
    "fewer keys": Case(length=13, key_length=9),
    "more keys": Case(length=9, key_length=13),
    "whole chunks": Case(length=16, bias=None),
    "given": Case(None, width=12, value_width=5, heads=4, bias_heads=4),
    "wide": Case(("oprf", "orf", {}, 256), width=128, value_width=256, size=0.3),
    "narrow": Case(("oprf", "orf", {}, 96), width=32, value_width=80, size=0.5),
}
WHOLE = (
    "trigonometric",
    "balanced",
    "learned weights a head",
    "large biases",
    "one token",
    "fewer keys",
    "given",
    "wide",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_causal(name):
    check(CASES[name], rtol=1e-3 if name == "large logits" else 1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_whole(name):
    check(dataclasses.replace(CASES[name], causal=False, segments=0), rtol=1e-4, atol=1e-5)


# Tokens in each segment, of chunks of 8.
SEGMENTS = {
    **{name: (name, 5) for name in CASES if not name.endswith("keys")},
    "over chunks": ("rotated", 17),
    "as long as chunks": ("whole chunks", 8),
    "the last of chunks": ("trigonometric", 4),
    "no key": ("balanced", 2),
    "one token": ("given", 1),
    "one segment": ("learned weights a head", 13),
    "one segment, large biases": ("large biases", 13),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTS)
def test_whole_segments(name):
    of, segments = SEGMENTS[name]
    changes = {"causal": False, "segments": segments, "key_length": None}
    if segments == 17:
        changes["length"] = 45
    rtol = 1e-3 if name == "large logits" else 1e-4
    check(dataclasses.replace(CASES[of], **changes), rtol=rtol, atol=1e-5)


KINDS = pytest.mark.parametrize(
    "causal, segments", [(True, 0), (False, 0), (False, 5)], ids=["causal", "full", "segments"]
)


@pytest.mark.slow
@KINDS
def test_bfloat16(causal, segments):
    check(Case(causal=causal, segments=segments, size=0.5), jnp.bfloat16, max_error=2e-2)


@pytest.mark.slow
@KINDS
def test_nan_in_removed_keys_reaches_nothing(causal, segments):
    case = Case(causal=causal, segments=segments)
    (query, key, value, bias), features, parameters = case.arrays()

    @jax.jit
    def gradients(key, value):
        def total(query, key, value, bias):
            call = case.call(query, key, value, bias).with_own_sums()
            return (attend_tiled(How(features, Fused(8)), parameters, call) ** 2).sum()

        return jax.grad(total, (0, 1, 2, 3))(query, key, value, bias)

    with pltpu.force_tpu_interpret_mode(INTERPRETED):
        clean = gradients(key, value)
        poisoned = gradients(key.at[:, 1].set(jnp.nan), value.at[:, 1].set(jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, clean, poisoned)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "segments"])
def test_transformations(causal, monkeypatch):
    """Without causality in segments whose ids come in any order, each of them in all chunks."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 150, 2, 8)) / 3, jnp.float32)
    feature_map = jaxattn.FeatureMap.create(jax.random.key(0), 8, 16)
    options = {"is_causal": True}
    if not causal:
        options = {"segment_ids": jnp.asarray(rng.integers(0, 3, (3, 150)))}

    def attend(x, implementation):
        return jaxattn.random_feature_attention(
            x, x, x, feature_map, implementation=implementation, chunk_size=128, **options
        )

    assert_transforms(attend, x, monkeypatch)


@KINDS
@pytest.mark.parametrize("given", [True, False], ids=["given", "made"])
def test_float32_is_traced_under_x64(given, causal, segments):
    """Where a number without a dtype, and a feature map made there, is float64."""
    with jax.enable_x64(True):
        x, feature_map = (
            jnp.ones((1, 3, 1, 8), jnp.float32),
            jaxattn.FeatureMap.create(jax.random.key(0), 8, 8),
        )
        ids = jnp.ones((1, 3), int) if segments else None

        def total(x, feature_map):
            options = {"is_causal": causal, "segment_ids": ids, "implementation": "pallas"}
            if given:
                return jaxattn.linear_attention(x, x, x, **options).sum()
            return jaxattn.random_feature_attention(x, x, x, feature_map, **options).sum()

        of_x, _ = jax.eval_shape(jax.grad(total, (0, 1), allow_int=True), x, feature_map)
    assert of_x.dtype == jnp.float32


LIMITS = {
    "fine": (checked(Case()), None, None),
    "a chunk": (checked(Case()), 256, None),
    "no multiple of the lanes": (checked(Case()), 64, "takes a chunk_size that is a multiple of 128; got 64"),
    "discrete": (checked(Case(("poisrf", "orf", {}, 8))), None, "one product with a dense matrix only"),
    "signs": (checked(Case(("oprf", "sgq", {}, 8))), None, "weights without signs"),
    "segments": (checked(Case(segments=5, causal=False)), None, None),
    "width": (checked(Case(width=264)), None, "takes query and key up to a width of 256; got 264"),
    "groups": (checked(Case(heads=16, kv_heads=1), jnp.bfloat16), None, None),
    "groups in float32": (
        checked(Case(heads=16, kv_heads=1)),
        None,
        "takes up to 8 query heads a key head in float32; got 16",
    ),
    "features": (
        checked(Case(("oprf", "orf", {}, 600))),
        None,
        "takes features up to a width of 512; got 600",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name):
    (call, features, number), chunk_size, message = LIMITS[name]
    reason = pallas_cannot(call, features, number, chunk_size)
    assert reason is None if message is None else message in reason


def test_refused_by_name():
    x = jnp.ones((1, 4, 2, 8))
    for options, message in (
        (
            {"implementation": "cuda"},
            "implementation must be one of None, 'xla', 'pallas', 'mosaic_gpu'; got 'cuda'",
        ),
        ({"chunk_size": 64, "implementation": "pallas"}, "implementation='pallas' takes a chunk_size that"),
        (
            {"normalize": False, "is_causal": True, "implementation": "pallas"},
            "implementation='pallas' takes neither normalize=False nor log_decay",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            jaxattn.linear_attention(x, x, x, **options)


@pytest.mark.parametrize(
    "implementation, platform, alone, length, fused",
    [
        (None, "tpu", True, 128, True),
        (None, "tpu", True, 100, False),
        (None, "tpu", False, 128, False),
        (None, "cuda", True, 128, False),
        ("xla", "tpu", True, 128, False),
        ("pallas", "cpu", False, 100, True),
    ],
)
def test_choice(implementation, platform, alone, length, fused, monkeypatch):
    monkeypatch.setattr("jaxattn.core.pallas.choice.is_alone", lambda x: alone)
    call = checked(Case(length=length))[0]
    chosen = choose_implementation(call, None, implementation, None, platform)
    assert chosen == (Fused(256) if fused else choose_tiling(None, call, platform))
    assert choose_implementation(call, "reason", None, None, platform) == choose_tiling(None, call, platform)
