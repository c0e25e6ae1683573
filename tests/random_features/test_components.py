"""Component functions: unbiased, in the order of variance that theory gives, with the best parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import COMPONENTS, FeatureMap
from jaxattn.random_features.components.exponential import GERF
from jaxattn.random_features.moments import Moments, balancing_map, balancing_scale, best_a

H, DRAWS = 8, 400
RNG = np.random.default_rng(0)
# Directions of different size, and different for queries and keys: what the dense-exponential features are for.
SPREAD = 0.6 * np.exp(0.5 * RNG.standard_normal(H))
QUERY = jnp.asarray(RNG.standard_normal((1, 6, 1, H)) * SPREAD, jnp.float32)
KEY = jnp.asarray(RNG.standard_normal((1, 5, 1, H)) * SPREAD[::-1], jnp.float32)

OPTIONS = [(name, {}) for name in COMPONENTS]
OPTIONS += [("posrf", {"hyperbolic": True}), ("poisrf", {"positive": True}), ("geomrf", {"positive": True})]
every_component = pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=[name + "+" * bool(options) for name, options in OPTIONS]
)


@functools.cache
def ratios(name, weights="gaussian", size=1.0, **options):
    """φ_q·φ_k / exp(x·y): (draws, pairs)."""
    x, y = size * QUERY, size * KEY
    exact = jnp.exp(jnp.einsum("btnh,bsnh->bnts", x, y) / H**0.5)

    @jax.jit
    def run(keys):
        def one(key):
            feature_map = FeatureMap.create(key, H, 96, name, weights, component_options=options)
            return (feature_map.calibrate(x, y).kernel(x, y) / exact).reshape(-1)

        return jax.vmap(one)(keys)

    return np.asarray(run(jax.random.split(jax.random.key(1), DRAWS)), np.float64)


@every_component
@pytest.mark.few(6)
def test_unbiased(name, options):
    """The mean over draws, averaged over pairs, is 1 within three standard errors."""
    means = ratios(name, **options).mean(axis=1)
    error = means.std(ddof=1) / DRAWS**0.5
    assert abs(means.mean() - 1) < 3 * error
    assert error < 0.05  # or the line above says nothing


@pytest.mark.parametrize("component", ["posrf", "trigrf"])
def test_unbiased_with_orthogonal_rows(component):
    means = ratios(component, weights="orf").mean(axis=1)
    assert abs(means.mean() - 1) < 3 * means.std(ddof=1) / DRAWS**0.5


def test_a_wrong_norm_would_be_found_out():
    """The power of the test above: features of a kernel 5 % too large do not pass."""
    means = 1.05 * ratios("oprf").mean(axis=1)
    assert abs(means.mean() - 1) > 3 * means.std(ddof=1) / DRAWS**0.5


def test_order_of_variance():
    """posrf > oprf > saderf > aderf and oprf > sderf > aderf on data with directions of different size."""
    variance = {
        name: ((ratios(name) - 1) ** 2).mean() for name in ("posrf", "oprf", "sderf", "saderf", "aderf")
    }
    assert variance["posrf"] > 1.5 * variance["oprf"]
    assert variance["oprf"] > variance["saderf"] > variance["aderf"]
    assert variance["oprf"] > variance["sderf"] > variance["aderf"]


@pytest.mark.parametrize("component", ["posrf", "oprf"])
def test_orthogonal_rows_have_less_variance(component):
    # Half the size: the heavy tails of large |x + y| would need many more draws.
    orthogonal, independent = (
        ((ratios(component, weights=w, size=0.5) - 1) ** 2).mean() for w in ("orf", "gaussian")
    )
    assert orthogonal < 0.95 * independent


@every_component
@pytest.mark.few(3)
def test_positive_where_promised(name, options):
    @jax.jit
    def features(query, key):
        feature_map = FeatureMap.create(jax.random.key(0), H, 48, name, component_options=options)
        feature_map = feature_map.calibrate(query, key)
        return jnp.concatenate([feature_map.query(query)[0].ravel(), feature_map.key(key)[0].ravel()])

    values = features(QUERY, KEY)
    if COMPONENTS[name].positive or options.get("positive"):
        assert (values >= 0).all()
    else:
        assert (values < 0).any()


def test_best_a_minimises_the_variance():
    """Against a search over a: E[f²f²] / E[ff]² of one coordinate, integrated numerically."""
    w, step = np.linspace(-12, 12, 40001, retstep=True)
    density = np.exp(-(w**2) / 2) / np.sqrt(2 * np.pi)

    def second_moment(a, z):
        # f(x)² f(y)² = (1 − 4a) exp(4a w² + 2 (1 − 4a)^½ w z) up to factors that do not depend on a, z = x + y.
        return (1 - 4 * a) * (density * np.exp(4 * a * w**2 + 2 * np.sqrt(1 - 4 * a) * w * z)).sum() * step

    for z in (0.1, 0.5, 1.0, 1.5):
        grid = np.linspace(-0.8, 0.1, 181)
        searched = grid[np.argmin([second_moment(a, z) for a in grid])]
        assert abs(float(best_a(jnp.float32(z**2))) - searched) < 0.006


def moments():
    x, y = RNG.standard_normal((2, 1, 500, 1, 3)) @ np.diag([1.0, 0.3, 2.0]) + 0.2
    y = y @ RNG.standard_normal((3, 3))
    return jax.tree.map(lambda m: m[0], Moments.of(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))


def test_balancing():
    m = moments()
    forward, backward = balancing_map(m)
    np.testing.assert_allclose(forward @ backward.T, np.eye(3), atol=1e-3)
    # The tiny ridge that makes any moments invertible is the rest of the difference.
    np.testing.assert_allclose(
        forward @ m.query_second @ forward.T, backward @ m.key_second @ backward.T, rtol=2e-2, atol=2e-2
    )
    p = balancing_scale(m)
    np.testing.assert_allclose(
        p**2 * jnp.diagonal(m.query_second), jnp.diagonal(m.key_second) / p**2, rtol=1e-2
    )


def test_moments_count_real_tokens_only():
    x = RNG.standard_normal((2, 7, 4, 3)).astype(np.float32)
    y = RNG.standard_normal((2, 5, 2, 3)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [2]])
    poisoned = jnp.asarray(np.where(mask[..., None, None], y, np.nan))
    m = Moments.of(jnp.asarray(x), poisoned, None, jnp.asarray(mask))
    real = np.concatenate([y[0], y[1, :2]])
    np.testing.assert_allclose(m.key_mean, real.mean(0), atol=1e-6)
    np.testing.assert_allclose(m.key_second, np.einsum("tkh,tki->khi", real, real) / 7, atol=1e-6)
    # Query heads 0, 1 share key head 0.
    np.testing.assert_allclose(m.query_mean[0], x[:, :, :2].mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(
        m.minimum[1], np.minimum(x[:, :, 2:].min((0, 1, 2)), real[:, 1].min(0)), atol=1e-6
    )


def test_learned_a_starts_at_posrf_and_stays_below_an_eighth():
    keys = jax.random.key(3)
    gerf, posrf = (FeatureMap.create(keys, H, 32, name, "gaussian") for name in ("gerf", "posrf"))
    np.testing.assert_allclose(gerf.kernel(QUERY, KEY), posrf.kernel(QUERY, KEY), rtol=1e-5)
    assert float(GERF(jnp.asarray(-30.0)).a) <= 0.125

    @jax.jit
    @jax.grad
    def slope(t):
        return FeatureMap(gerf.weights, GERF(t), None, None, None, "global").kernel(QUERY, KEY).sum()

    assert float(slope(jnp.zeros(()))) != 0.0


@pytest.mark.parametrize("name", ["poisrf", "geomrf"])
def test_powers_of_zero(name):
    """A coordinate that is exactly 0 gives finite features and gradients."""

    @jax.jit
    @jax.value_and_grad
    def total(query):
        return FeatureMap.create(jax.random.key(0), H, 16, name).kernel(query, KEY).sum()

    value, slope = total(QUERY.at[..., 0].set(0.0))
    assert jnp.isfinite(value) and jnp.isfinite(slope).all()
