"""Feature maps: every pair, calibration, redraws, precision, and attention with them."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn import COMPONENTS, WEIGHTS, FeatureMap, random_feature_attention
from jaxattn.nn import RandomFeatures
from jaxattn.random_features import Moments
from jaxattn.random_features.components import GERF
from jaxattn.testing import assert_matches_reference


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


WIDTH, ROWS = 5, 7


# Families with code of their own for the product, `quadratic`, signs or weights; the others share that of gaussian.
DISTINCT = ("gaussian", "sorf", "rom", "fastfood", "scrf", "p_model", "ssf", "sgq", "ssr")


@pytest.fixture(scope="module")
def drawn():
    """Every weight matrix once, for all components."""
    make = jax.jit(lambda key: {name: family.create(key, WIDTH, ROWS) for name, family in WEIGHTS.items()})
    return make(jax.random.key(0))


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.few(2)
def test_every_pair_runs(component, drawn):
    """Features and gradients are finite, and as many as asked for."""
    if component != "oprf":
        drawn = {name: drawn[name] for name in DISTINCT}
    query, key = normal(0, 1, 4, 2, WIDTH), normal(1, 1, 3, 2, WIDTH)
    kind = COMPONENTS[component].create(jax.random.key(1), WIDTH, ROWS)
    moments = Moments.of(query, key)

    @jax.jit
    def run(query, key):
        def of(weights):
            feature_map = FeatureMap(weights, kind, None, None, None, "global")
            if kind.calibrates:
                feature_map = feature_map.with_moments(moments)
            return feature_map.kernel(query, key)

        sums, vjp = jax.vjp(lambda q, k: {n: of(w) for n, w in drawn.items()}, query, key)
        return sums, vjp(jax.tree.map(jnp.ones_like, sums))

    kernels, grads = run(query, key)
    for name, kernel in kernels.items():
        assert kernel.shape == (1, 2, 4, 3) and jnp.isfinite(kernel).all(), name
    # One gradient through all of them: a single NaN would show.
    assert all(jnp.isfinite(g).all() for g in grads)


def test_code_compiled_for_one_map_is_not_run_for_another(drawn):
    """Maps with equally many leaves are different structures: no cache takes one for the other."""

    def components(key):
        return {name: kind.create(key, WIDTH, ROWS) for name, kind in COMPONENTS.items()}

    for parts in (drawn, jax.eval_shape(components, jax.random.key(0))):
        structures = [jax.tree.structure(part) for part in parts.values()]
        for i, structure in enumerate(structures):
            assert all(structure != other for other in structures[:i]), list(parts)[i]
    x = normal(0, 1, 6, 1, 4)
    for component in ("geomrf", "poisrf"):
        make = functools.partial(FeatureMap.create, component=component)
        feature_map = jax.jit(lambda key, make=make: make(key, 4, 64).calibrate(x, x))(jax.random.key(0))
        out = random_feature_attention(x, x, x, feature_map)
        np.testing.assert_allclose(out, dense(feature_map)(x, x, x, is_causal=False), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.few(2)
def test_one_feature_of_one_coordinate(component):
    feature_map = FeatureMap.create(jax.random.key(0), 1, 1, component)
    phi, scale = feature_map.query(normal(0, 3, 2, 1))
    assert (
        phi.shape == (3, 2, feature_map.num_features)
        and jnp.isfinite(phi).all()
        and jnp.isfinite(scale).all()
    )
    assert feature_map.num_features == {"trigrf": 2, "hrf": 6}.get(component, 1)


def dense(feature_map):
    """Attention by the map's own kernel estimate, T×S at once."""

    def call(query, key, value, *, is_causal):
        weights = feature_map.kernel(query, key)
        weights = jnp.tril(weights) if is_causal else weights
        value = jnp.repeat(value, query.shape[2] // value.shape[2], axis=2)
        return jnp.einsum("bnts,bsnv->btnv", weights / weights.sum(-1, keepdims=True), value)

    return call


@pytest.mark.parametrize(
    ("is_causal", "num_heads"), [(False, None), (True, 2)], ids=["full", "causal a head"]
)
@pytest.mark.few(1)
def test_attention_is_the_dense_form(is_causal, num_heads):
    """With statistics and draws a key head; outputs and gradients of the tensors."""
    query, key, value = normal(0, 2, 12, 4, 6), normal(1, 2, 12, 2, 6), normal(2, 2, 12, 2, 3)

    @jax.jit
    def make(random_key):
        return FeatureMap.create(random_key, 6, 9, "aderf", num_heads=num_heads).calibrate(query, key)

    feature_map = make(jax.random.key(3))
    assert_matches_reference(
        jax.jit(lambda *a: random_feature_attention(*a, feature_map, is_causal=is_causal)),
        lambda *a: dense(feature_map)(*a, is_causal=is_causal),
        (query, key, value),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.few(1)
def test_learned_parts_get_the_dense_gradient(is_causal):
    query, key, value = normal(0, 2, 12, 2, 6), normal(1, 2, 12, 2, 6), normal(2, 2, 12, 2, 3)
    # Causal with parameters that the heads share, otherwise with a set for each.
    feature_map = FeatureMap.create(
        jax.random.key(3), 6, 9, "gerf", "fastfood_learnable", num_heads=None if is_causal else 2
    )

    def loss(attend):
        return jax.jit(jax.grad(lambda f: jnp.sin(attend(f)).sum()))(feature_map)

    fast = loss(lambda f: random_feature_attention(query, key, value, f, is_causal=is_causal))
    slow = loss(lambda f: dense(f)(query, key, value, is_causal=is_causal))
    chex.assert_trees_all_close(fast, slow, rtol=1e-3, atol=1e-4)
    assert any(abs(g).max() > 1e-3 for g in jax.tree.leaves(fast))


@pytest.mark.parametrize("component", ["gerf", "oprf", "sderf", "aderf", "saderf"])
def test_quadrature_nodes_are_tilted(component):
    """In float64: nodes w = (I − 4A)^-½ u, each weight times N(w; 0, I) / N(w; 0, (I − 4A)^-1)."""
    width, rows = 4, 30
    with jax.enable_x64(True):
        x, y = (jnp.asarray(np.random.default_rng(i).standard_normal((1, 5, 1, width))) for i in range(2))

        @jax.jit
        def run(key):
            # With a = 1/16 in place of the 0 that it starts from, gerf is tilted too.
            feature_map = FeatureMap.create(key, width, rows, component, "sgq").calibrate(x, y, scale=1.0)
            if component == "gerf":
                feature_map = dataclasses.replace(feature_map, component=GERF(jnp.log(0.5)))
            # Maps are float32; the formula is checked in float64.
            feature_map = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), feature_map)
            kind, weights = feature_map.component, feature_map.weights
            one = jax.tree.map(lambda leaf: leaf[0], kind) if feature_map.component_heads else kind
            transformed = one.transform_query(x[0, :, 0]), one.transform_key(y[0, :, 0])
            mass = weights.signs * jnp.exp(weights.log_weights) / rows
            return feature_map.kernel(x, y, scale=1.0)[0, 0], one.a, weights.rows, transformed, mass

        found, a, nodes, (x, y), mass = jax.tree.map(np.asarray, run(jax.random.key(0)))
    a = np.broadcast_to(a, width).astype(np.float64)
    shrink = 1 - 4 * a
    assert (abs(shrink - 1) > 1e-2).all()
    w = nodes / np.sqrt(shrink)
    correction = np.exp(-0.5 * (w**2).sum(-1) + 0.5 * (nodes**2).sum(-1)) / np.sqrt(shrink.prod())
    tilt = np.sqrt(shrink.prod()) * np.exp(2 * (w**2 @ a))
    sums = (x[:, None] + y) * np.sqrt(shrink)
    norms = 0.5 * ((x**2).sum(-1)[:, None] + (y**2).sum(-1))
    expected = (mass * correction * tilt * np.exp(sums @ w.T - norms[..., None])).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.slow
def test_tilted_components_on_quadrature_nodes_are_as_good_as_posrf():
    posrf = errors("posrf", "sgq", 0.5)
    assert posrf < 0.4
    for component in ("oprf", "saderf"):
        assert errors(component, "sgq", 0.5) < 1.1 * posrf


@pytest.mark.parametrize("component", ["trigrf", "hrf", "geomrf", "poisrf"])
def test_unusable_pairs_are_refused(component):
    with pytest.raises(ValueError, match=f"'{component}' is not usable with weights 'sgq'.*allow_unusable"):
        FeatureMap.create(jax.random.key(0), 4, 6, component, "sgq")
    with pytest.raises(ValueError, match="not usable"):
        RandomFeatures(component, "sgq")
    if component == "trigrf":
        assert (
            FeatureMap.create(jax.random.key(0), 4, 6, component, "sgq", allow_unusable=True).num_features
            == 6
        )


def relative_error(out, exact):
    return float(jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact))


def errors(component, weights, std, stabilizer="global"):
    """Output errors against softmax of four draws; H 32, M 128, T 256."""

    @jax.jit
    def run(seed):
        q, k, v = (normal(10 * seed + i, 1, 256, 2, 32) for i in range(3))
        q, k = std * q, std * k
        feature_map = FeatureMap.create(
            jax.random.key(seed), 32, 128, component, weights, stabilizer=stabilizer
        ).calibrate(q, k)
        return random_feature_attention(q, k, v, feature_map), jaxattn.dot_product_attention(q, k, v)

    return np.mean([relative_error(*run(seed)) for seed in range(4)])


def test_error_against_softmax():
    """At q, k ~ N(0, 1/4); the published stabilisation of keys computes something else, and larger errors."""
    correct = errors("oprf", "orf", 0.5)
    assert correct < 0.30
    assert errors("posrf", "orf", 0.5) < 0.35
    assert errors("oprf", "orf", 0.5, "per_key") > 1.3 * correct


def test_unit_queries_and_keys_are_too_large():
    """What the documentation warns of: the error is larger than that of averaging the values, about 0.8."""
    assert errors("oprf", "orf", 1.0) > 1.0


@pytest.mark.parametrize("component", ["oprf", "trigrf"])
@pytest.mark.few(1)
def test_logits_of_fifty(component):
    """|x|² = |y|² = 50: finite, and equal to the float64 sum of the same features."""
    width = 16
    x = normal(0, 1, 8, 2, width)
    x *= 50**0.5 * width**0.25 / jnp.linalg.norm(x, axis=-1, keepdims=True)
    query, key = x, jnp.concatenate([x[:, :4], -x[:, :4]], axis=1)
    value = normal(2, 1, 8, 2, 3)
    make = functools.partial(FeatureMap.create, component=component, weights="gaussian")
    feature_map = jax.jit(lambda key_: make(key_, width, 32).calibrate(query, key))(jax.random.key(3))
    attend = jax.jit(lambda *a: random_feature_attention(*a, feature_map))
    out, vjp = jax.vjp(attend, query, key, value)
    assert jnp.isfinite(out).all() and all(jnp.isfinite(g).all() for g in vjp(jnp.ones_like(out)))
    if not COMPONENTS[component].positive:
        return  # sums that cancel have no digits left to compare
    with jax.enable_x64(True):
        args = [jnp.asarray(np.asarray(a), jnp.float64) for a in (query, key, value)]
        exact = dense(feature_map)(*args, is_causal=False)
    np.testing.assert_allclose(out, exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("width", [1, 256])
@pytest.mark.few(1)
def test_head_widths(width):
    q, k, v = (normal(i, 1, 20, 1, width) / 4 for i in range(3))

    @jax.jit
    def attend(q, k, v):
        feature_map = FeatureMap.create(jax.random.key(0), width, 300).calibrate(q, k)
        return random_feature_attention(q, k, v, feature_map, is_causal=True)

    out = attend(q, k, v)
    assert relative_error(out, jaxattn.dot_product_attention(q, k, v, is_causal=True)) < 0.15


def test_calibration():
    query, key = normal(0, 2, 9, 4, 6), 0.5 * normal(1, 2, 9, 2, 6)
    start = FeatureMap.create(jax.random.key(0), 6, 8)
    token_mask = jnp.broadcast_to(jnp.arange(9) < 5, (2, 9))

    @jax.jit
    def run(query, key):
        poisoned = [jnp.where(token_mask[..., None, None], x, jnp.nan) for x in (query, key)]
        first = start.calibrate(query, key)
        moved = first.calibrate(2 * query, key, momentum=0.75)
        size = 6**-0.25
        parameters = {
            "first": first,
            "masked": start.calibrate(*poisoned, token_mask=token_mask),
            "cut": start.calibrate(query[:, :5], key[:, :5]),
            "unbatched": start.calibrate(query[0], key[0]),
            "one": start.calibrate(query[:1], key[:1]),
            "scaled": start.calibrate(size * query, size * key, scale=1.0),
        }
        slope = jax.grad(lambda q: start.calibrate(q, key).component.a.sum())(query)
        moments = first.moments.query_second, moved.moments.query_second
        return {name: found.component.a for name, found in parameters.items()}, moments, slope

    a, (before, after), slope = run(query, key)
    assert a["first"].shape == (2,) and start.component.a.shape == ()
    # Padding counts in no statistic, not even as NaN.
    np.testing.assert_allclose(a["masked"], a["cut"], rtol=1e-5)
    np.testing.assert_allclose(a["unbatched"], a["one"], rtol=1e-6)
    np.testing.assert_allclose(a["scaled"], a["first"], rtol=1e-4)
    # A moving average of the moments, not of the parameters.
    np.testing.assert_allclose(after, 0.75 * before + 0.25 * 4 * before, rtol=1e-5)
    assert (slope == 0).all(), "no gradient through statistics"
    assert FeatureMap.create(jax.random.key(0), 6, 8, "posrf").calibrate(query, key).moments is None


@pytest.mark.parametrize("component", ["oprf", "sderf", "aderf", "saderf"])
def test_without_statistics_the_features_are_positive_ones(component):
    """A guess of N(0, I) erred by 0.36 at queries and keys N(0, 0.25) of width 32, where posrf errs by 0.28."""
    query, key = normal(0, 1, 5, 2, 8), normal(1, 1, 5, 2, 8)
    kernels = [
        FeatureMap.create(jax.random.key(0), 8, 16, name, "gaussian").kernel(query, key)
        for name in (component, "posrf")
    ]
    np.testing.assert_allclose(*kernels, rtol=1e-4)


def test_redraw_keeps_what_was_learned_and_measured():
    query = normal(0, 2, 9, 2, 6)

    @jax.jit
    def make(key):
        return FeatureMap.create(key, 6, 8, "oprf", "gmm", num_heads=2).calibrate(query, query)

    feature_map = make(jax.random.key(0))
    learned = dataclasses.replace(
        feature_map, weights=dataclasses.replace(feature_map.weights, **{
            name: getattr(feature_map.weights, name) + 0.1 for name in feature_map.weights.trainable})
    )  # fmt: skip
    fresh = jax.jit(FeatureMap.resample)(learned, jax.random.key(5))
    for name in learned.weights.trainable:
        np.testing.assert_array_equal(getattr(fresh.weights, name), getattr(learned.weights, name))
    np.testing.assert_array_equal(fresh.component.a, learned.component.a)
    assert abs(fresh.query(query)[0] - learned.query(query)[0]).max() > 1e-3
    hybrid = COMPONENTS["hrf"].create(jax.random.key(0), 6, 2)
    assert abs(hybrid.resample(jax.random.key(1)).directions - hybrid.directions).max() > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureMap.create(jax.random.key(0), 6, 8, "oprff"), "component must be one of 'trigrf'"),
        (
            lambda: FeatureMap.create(jax.random.key(0), 6, 8, weights="or"),
            "weights must be one of 'gaussian'",
        ),
        (lambda: FeatureMap.create(jax.random.key(0), 6, 0), "num_features must be at least 1; got 0"),
        (lambda: FeatureMap.create(jax.random.key(0), 6, 8, stabilizer="max"), "stabilizer must be one of"),
        (lambda: small().calibrate(normal(0, 2, 3, 2, 6), normal(0, 2, 3, 4, 6)), "multiple of key's heads"),
        (lambda: small().calibrate(X, X, momentum=1.5), "momentum must be at least 0 and below 1; got 1.5"),
        (lambda: small().calibrate(X, X, token_mask=jnp.ones((2, 4), bool)), "token_mask must have shape"),
        (lambda: small().query(jnp.zeros((2, 3, 2, 6), int)), "query must be floating point"),
        (lambda: random_feature_attention(X[..., :4], X[..., :4], X, small()), "width H = 6; got 4"),
        (lambda: small().calibrate(X[..., :4], X[..., :4]), "width H = 6; got 4"),
        (lambda: random_feature_attention(X, X, X, small(), scale=-1.0), "scale must not be negative"),
        (lambda: random_feature_attention(X, X, X, small(), scale=float("inf")), "scale must be finite"),
        (lambda: random_feature_attention(X, X, X[:, :2], small()), "value must have shape"),
        (lambda: random_feature_attention(X, X, X, small(), chunk_size=-1), "chunk_size must be None"),
        (
            lambda: random_feature_attention(
                X, X, X, FeatureMap.create(jax.random.key(0), 6, 8, num_heads=3)
            ),
            "feature_map must have parameters for 2 heads",
        ),
    ],
)
def test_bad_arguments(call, message, no_typecheck):
    with pytest.raises(ValueError, match=message):
        call()


X = normal(0, 2, 3, 2, 6)


def small():
    return FeatureMap.create(jax.random.key(0), 6, 8)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="hyperbolic"):
        FeatureMap.create(jax.random.key(0), 6, 8, "oprf", component_options={"hyperbolic": True})
    with pytest.raises(TypeError, match="level"):
        FeatureMap.create(jax.random.key(0), 6, 8, weight_options={"level": 2})
