"""Fused kernels interpreted on a CPU, which finds races and reads of what was never written: values and gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # where found races are
from jax.experimental.pallas import tpu as pltpu

import jaxattn
from jaxattn.core.call import check_call
from jaxattn.linear.attention import How, attend_tiled
from jaxattn.linear.implementation import Fused, choose_implementation, pallas_cannot
from jaxattn.linear.plan import IDENTITY, choose_tiling
from jaxattn.testing import assert_close_to_reference, assert_matches_reference
from tests.common.transformations import assert_transforms

INTERPRETED = pltpu.InterpretParams(detect_races=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call. `features` is (component, weights, options, number), or None for given ones of width M."""

    features: Any = ("oprf", "orf", {}, 12)
    causal: bool = True
    batch: int = 1
    length: int = 13
    key_length: int | None = None
    heads: int = 2
    kv_heads: int = 2
    width: int = 8
    value_width: int = 8
    size: float = 1.0
    bias: float | None = 3.0
    bias_heads: int = 1
    segments: bool = False
    per_head: bool = False
    stabilizer: str = "global"
    chunk: int = 8

    def arrays(self, dtype=jnp.float32):
        """(query, key, value, key_bias), the feature functions and their parameters."""
        rng = np.random.default_rng(0)

        def normal(*shape):
            return jnp.asarray(rng.standard_normal(shape), dtype)

        key_length = self.key_length or self.length
        query = self.size * normal(self.batch, self.length, self.heads, self.width)
        key = self.size * normal(self.batch, key_length, self.kv_heads, self.width)
        value = normal(self.batch, key_length, self.kv_heads, self.value_width)
        bias = (self.bias or 0.0) * normal(self.batch, key_length, self.bias_heads).astype(jnp.float32)
        bias = bias.at[:, :2].set(-jnp.inf).at[:, -1].set(-jnp.inf)
        if self.features is None:
            return (jnp.exp(query), jnp.exp(key), value, bias), IDENTITY, []
        component, weights, options, number = self.features
        feature_map = jaxattn.FeatureMap.create(
            jax.random.key(0),
            self.width,
            number,
            component,
            weights,
            component_options=options,
            num_heads=self.kv_heads if self.per_head else None,
            stabilizer=self.stabilizer,
        ).calibrate(normal(1, 30, self.kv_heads, self.width), 2 * normal(1, 30, self.kv_heads, self.width))
        return (query, key, value, bias), *feature_map.functions(self.width**-0.5, self.width)

    def call(self, query, key, value, key_bias):
        """The checked call."""
        ids = jnp.broadcast_to(jnp.arange(self.length) // 5, (self.batch, self.length))
        return check_call(
            query,
            key,
            value,
            key_bias=None if self.bias is None else key_bias,
            is_causal=self.causal,
            segment_ids=ids if self.segments else None,
        )


def reference(case, features, query, key, value, key_bias, *parameters):
    """Every pair of tokens, weighed relative to the largest weight that its query sees."""
    call = case.call(query, key, value, key_bias)
    axes = features.axes(), 2, None
    phi_q, _ = jax.vmap(features.query, axes, 2)(list(parameters), call.query, None)
    phi_k, scale = jax.vmap(features.key, axes, 2)(list(parameters), call.key, None)
    log_weight = scale[..., None] + (0 if call.key_bias is None else call.key_bias)  # (B, S, K, G)
    position, key_position = jnp.arange(case.length), jnp.arange(key.shape[1])
    allowed = (
        position[:, None] >= key_position if case.causal else jnp.ones((case.length, key.shape[1]), bool)
    )
    if case.segments:
        allowed &= position[:, None] // 5 == key_position // 5
    seen = jnp.where(allowed[:, :, None, None], log_weight[:, None], -jnp.inf)
    top = jax.lax.stop_gradient(seen.max(axis=2, keepdims=True))
    weights = jnp.exp(seen - jnp.where(top == -jnp.inf, 0, top))
    weights *= jnp.einsum("btkgf,bskf->btskg", phi_q, phi_k)
    total = weights.sum(axis=2)[..., None]
    out = jnp.einsum("btskg,bskv->btkgv", weights, value) / jnp.where(total == 0, 1, total)
    return call.merge_heads(out)


def check(case, dtype=jnp.float32, **tolerances):
    """Values and gradients of arrays and parameters against float64, without a race."""
    args, features, parameters = case.arrays(dtype)

    @jax.jit
    def fused(query, key, value, key_bias, *parameters):
        call = case.call(query, key, value, key_bias).with_own_sums()
        repeated = features.repeat_parameters(list(parameters), call.key.shape[2])
        return call.merge_heads(attend_tiled(How(features, Fused(case.chunk)), repeated, call)).astype(dtype)

    expected = jax.jit(lambda *args: reference(case, features, *args))
    with pltpu.force_tpu_interpret_mode(INTERPRETED):
        compare = assert_close_to_reference if "max_error" in tolerances else assert_matches_reference
        options = {"check_gradients": True} | tolerances
        compare(fused, expected, (*args, *parameters), **options)
    assert not interpreter.races.races_found


def test_causal_features_in_segments():
    """Segments across chunks, the last of them cut; groups whose heads weigh keys apart; removed keys."""
    check(Case(segments=True, heads=2, kv_heads=1, bias_heads=2), rtol=1e-4, atol=1e-5)


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
    "biases": Case(bias=30.0, segments=True),
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
    check(dataclasses.replace(CASES[name], causal=False, segments=False), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_bfloat16(causal):
    check(Case(causal=causal, size=0.5), jnp.bfloat16, max_error=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_nan_in_removed_keys_reaches_nothing(causal):
    case = Case(causal=causal)
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
def test_transformations(monkeypatch):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 150, 2, 8)) / 3, jnp.float32)
    feature_map = jaxattn.FeatureMap.create(jax.random.key(0), 8, 16)

    def attend(x, implementation):
        return jaxattn.random_feature_attention(
            x, x, x, feature_map, is_causal=True, implementation=implementation
        )

    assert_transforms(attend, x, monkeypatch)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_float32_is_traced_under_x64(causal):
    """Where a number without a dtype, and a feature map made there, is float64."""
    with jax.enable_x64(True):
        x, feature_map = (
            jnp.ones((1, 3, 1, 8), jnp.float32),
            jaxattn.FeatureMap.create(jax.random.key(0), 8, 8),
        )

        def total(x, feature_map):
            options = {"is_causal": causal, "implementation": "pallas"}
            return jaxattn.random_feature_attention(x, x, x, feature_map, **options).sum()

        of_x, _ = jax.eval_shape(jax.grad(total, (0, 1), allow_int=True), x, feature_map)
    assert of_x.dtype == jnp.float32


def checked(case=Case(), dtype=jnp.float32, **changes):
    args, features, parameters = case.arrays(dtype)
    call = case.call(*args).with_own_sums().replace(**changes)
    return call, features, features.number(parameters, call.query)


LIMITS = {
    "fine": (checked(), None, None),
    "a chunk": (checked(), 256, None),
    "no multiple of the lanes": (checked(), 64, "takes a chunk_size that is a multiple of 128; got 64"),
    "discrete": (checked(Case(("poisrf", "orf", {}, 8))), None, "one product with a dense matrix only"),
    "signs": (checked(Case(("oprf", "sgq", {}, 8))), None, "weights without signs"),
    "segments": (checked(Case(segments=True, causal=False)), None, "segment_ids in causal attention only"),
    "width": (checked(Case(width=264)), None, "takes query and key up to a width of 256; got 264"),
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
        ({"implementation": "cuda"}, "implementation must be one of None, 'xla', 'pallas'; got 'cuda'"),
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
