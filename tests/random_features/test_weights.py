"""Every weight family against the same requirements, then each one's own properties."""

import dataclasses
import math

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxattn.random_features.weights import WEIGHTS, Weights
from jaxattn.random_features.weights.base import Dense
from jaxattn.random_features.weights.hadamard import hadamard
from jaxattn.random_features.weights.qmc import halton, sobol
from jaxattn.random_features.weights.sgq import _grid
from jaxattn.random_features.weights.simrf import simplex

FAMILIES = sorted(WEIGHTS)
VARIANTS = [
    ("orf", {"norms": "sqrt"}),
    ("sorf", {"num_products": 2}),
    ("rom", {"kind": "rademacher"}),
    ("rom", {"num_products": 1}),
    ("p_model", {"structure": "low_displacement_rank", "rank": 3}),
    ("qmc", {"sequence": "halton"}),
    ("sgq", {"level": 2}),
    ("ssr", {"vertices": "orthoplex"}),
    ("ssr", {"center": False}),
    ("bbq", {"points": "sobol"}),
]
CASES = [(name, {}) for name in FAMILIES] + VARIANTS
FAST_VARIANTS = [case for case in VARIANTS if case[0] in ("sorf", "rom", "p_model")]
# Rows that are N(0, I) one by one, or a rule that is unbiased by design: E exp(w·x) = exp(|x|²/2).
UNBIASED = {"gaussian", "orf", "simrf", "scrf", "p_model", "qmc", "ssf", "ssr", "bbq"}
NOT_REDRAWN = {"fastfood_learnable"}


def _case(values):
    return pytest.param(
        *values, id="-".join([values[0], *map(str, values[1].values()), *map(str, values[2:])])
    )


def _mean(weights, values):
    """(1/M) Σ signs exp(log_weights) values over the rows, the first axis of `values`."""
    scale = jnp.ones(weights.num_rows)
    if weights.log_weights is not None:
        scale *= jnp.exp(weights.log_weights)
    if weights.signs is not None:
        scale *= weights.signs
    return jnp.tensordot(scale, values, axes=1) / weights.num_rows


def _close(samples, expected, slack=1e-3):
    """Checks a Monte Carlo mean over the first axis against five standard errors, and that those are small."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0) / math.sqrt(len(samples))
    assert error.max() < 0.12
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - expected), 5 * error + slack)


MOMENTS = [(*case, 6, 10) for case in CASES] + [
    ("sorf", {}, 8, 19),
    *((name, {}, 6, 3) for name in ("mm", "rom")),
    *((name, {}, 6, 1) for name in ("mm", "ssr")),
]


@pytest.mark.parametrize("name, options, head_dim, num_rows", [_case(c) for c in MOMENTS])
@pytest.mark.few(6)
def test_mean_0_and_covariance_identity(name, options, head_dim, num_rows):
    x = 0.7 * jax.random.normal(jax.random.key(5), (head_dim,)) / head_dim**0.5

    @jax.jit
    @jax.vmap
    def draw(key):
        weights = WEIGHTS[name].create(key, head_dim, num_rows, **options)
        rows = weights.matrix()
        outer = rows[:, :, None] * rows[:, None, :]
        return _mean(weights, rows), _mean(weights, outer), _mean(weights, jnp.exp(rows @ x))

    first, second, exponential = draw(jax.random.split(jax.random.key(1), 2000))
    _close(first, 0.0)
    _close(second, np.eye(head_dim))
    if name in UNBIASED and options.get("norms") != "sqrt" and "rank" not in options:
        _close(exponential, np.exp(x @ x / 2))
    else:
        _close(exponential, np.exp(x @ x / 2), slack=0.02)


@pytest.mark.parametrize("name, options", [_case(c) for c in [*CASES[: len(FAMILIES)], *FAST_VARIANTS]])
@pytest.mark.few(8)
def test_fast_product_is_the_dense_one_at_odd_sizes(name, options):
    @jax.jit
    def run(key):
        outcome = []
        for head_dim, num_rows in [(8, 9)] if options else [(1, 7), (8, 1)]:
            weights = WEIGHTS[name].create(key, head_dim, num_rows, **options)
            x = jax.random.normal(key, (3, head_dim))
            outcome.append((x, weights.matrix(), weights.apply(x)))
        return outcome

    for x, rows, product in run(jax.random.key(0)):
        assert product.shape == (3, len(rows))
        np.testing.assert_allclose(product, x @ rows.T, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.few(5)
def test_products_and_draws(name):
    """For vmapped heads, drawn and redrawn inside jit: agreement with the dense rows, leaves, gradients."""
    head_dim, num_rows = 5, 19
    x = jax.random.normal(jax.random.key(2), (2, 2, 3, head_dim))
    diagonal = jnp.linspace(-1.0, 2.0, head_dim)

    @jax.jit
    def run(keys, x):
        create = jax.vmap(lambda key: WEIGHTS[name].create(key, head_dim, num_rows))
        heads = create(keys)
        redrawn = jax.vmap(lambda head, key: head.resample(key))(heads, keys[::-1])

        def figures(head, x):
            return head.matrix(), head.apply(x), head.quadratic(diagonal), head.sq_norms

        def smooth(heads):
            _, product, quadratic, _ = jax.vmap(figures)(heads, x)
            return jnp.sin(product).sum() + jnp.sin(quadratic).sum()

        weighted = jax.vmap(lambda head: (head.log_weights, head.signs))(redrawn)
        return heads, redrawn, jax.vmap(figures)(redrawn, x), weighted, jax.grad(smooth)(redrawn)

    keys = jax.random.split(jax.random.key(3))
    heads, redrawn, (rows, product, quadratic, sq_norms), (log_weights, signs), grads = run(keys, x)
    chex.assert_trees_all_equal(redrawn, run(keys, x)[1])

    assert isinstance(redrawn, Weights)
    assert jax.tree.structure(heads) == jax.tree.structure(redrawn)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(redrawn))
    assert rows.shape == (2, num_rows, head_dim)
    assert product.dtype == jnp.float32
    for head in range(2):
        dense = np.asarray(rows[head], np.float64)
        tolerance = 2e-5 * max(1.0, np.square(dense).sum(axis=-1).max())
        np.testing.assert_allclose(product[head], x[head] @ dense.T, atol=tolerance)
        np.testing.assert_allclose(quadratic[head], np.square(dense) @ diagonal, atol=tolerance)
        np.testing.assert_allclose(sq_norms[head], np.square(dense).sum(axis=-1), atol=tolerance)
    assert log_weights is None or (log_weights.shape == (2, num_rows) and np.isfinite(log_weights).all())
    assert signs is None or set(np.unique(signs)) <= {-1.0, 1.0}
    chex.assert_tree_all_finite(grads)
    for field in redrawn.trainable:
        np.testing.assert_array_equal(getattr(heads, field), getattr(redrawn, field))
        assert np.abs(getattr(grads, field)).max() > 0, field
    chex.assert_trees_all_equal_shapes_and_dtypes(heads, redrawn)
    assert not np.allclose(rows[0], rows[1]), "the heads differ"
    same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (heads, redrawn)), strict=True)]
    assert all(same) == (name in NOT_REDRAWN), "a redraw changes something"


@pytest.mark.parametrize("name, options", [_case(c) for c in CASES])
def test_fields_and_bad_arguments(name, options, no_typecheck):
    family = WEIGHTS[name]
    assert set(family.trainable) <= {field.name for field in dataclasses.fields(family)}
    with pytest.raises(TypeError):
        family.create(jax.random.key(0), 4, 4, colour="red")
    if name != "gaussian":
        with pytest.raises(ValueError, match=r"head_dim .*at least 1; got 0"):
            family.create(jax.random.key(0), 0, 4)
        with pytest.raises(ValueError, match=r"num_rows .*at least 1; got -1"):
            family.create(jax.random.key(0), 4, -1)
    for option, value in options.items():
        bad = "red" if isinstance(value, str) else 0.5
        with pytest.raises(ValueError, match=f"{option} must be .*; got {bad!r}"):
            family.create(jax.random.key(0), 4, 4, **{**options, option: bad})


def _sizes(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in (*eqn.invars, *eqn.outvars))
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _sizes(inner)


FAST = [(name, {}) for name, family in WEIGHTS.items() if not issubclass(family, Dense)]
FAST.append(("p_model", {"structure": "low_displacement_rank"}))


@pytest.mark.parametrize("name, options", [_case(c) for c in FAST])
@pytest.mark.few(3)
def test_no_array_of_the_size_of_the_matrix(name, options):
    weights = jax.jit(lambda key: WEIGHTS[name].create(key, 64, 128, **options))(jax.random.key(0))
    closed = jax.make_jaxpr(lambda weights, x: weights.apply(x))(weights, jnp.ones(64))
    sizes = [
        *_sizes(closed.jaxpr),
        *(np.size(c) for c in closed.consts),
        *map(np.size, jax.tree.leaves(weights)),
    ]
    assert 0 < max(sizes) < 64 * 128


def test_no_accuracy_is_lost_or_made_up():
    weights = WEIGHTS["sorf"].create(jax.random.key(0), 5, 7)
    assert weights.apply(jnp.ones(5, jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert weights.apply(jnp.ones(5, jnp.float64)).dtype == jnp.float64


@pytest.mark.parametrize("size", [1, 2, 64, 4096])
def test_hadamard(size):
    x = jax.random.normal(jax.random.key(0), (2, size))
    np.testing.assert_allclose(hadamard(x), x @ scipy.linalg.hadamard(size).astype(np.float32), atol=2e-3)


def test_orf_blocks_are_orthogonal_with_chi_norms():
    draw = jax.jit(jax.vmap(lambda key: WEIGHTS["orf"].create(key, 6, 10).rows))
    rows = draw(jax.random.split(jax.random.key(0), 500))
    gram = np.einsum("kmh,knh->kmn", rows[:, :6], rows[:, :6])
    np.testing.assert_allclose(gram * (1 - np.eye(6)), 0, atol=1e-4)
    squared = np.square(rows).sum(axis=-1).ravel()
    assert abs(squared.mean() - 6) < 0.3 and abs(squared.var() - 12) < 1.5
    equal = WEIGHTS["orf"].create(jax.random.key(0), 6, 10, norms="sqrt")
    np.testing.assert_allclose(equal.sq_norms, 6, rtol=1e-5)


def test_structured_blocks_equal_their_definition():
    n, m = 8, 5

    @jax.jit
    def draw(key):
        sizes = {"sorf": n, "fastfood": n, "scrf": m, "p_model": m}
        drawn = {name: WEIGHTS[name].create(key, size, size) for name, size in sizes.items()}
        options = {"structure": "low_displacement_rank", "rank": 2}
        drawn["rank"] = WEIGHTS["p_model"].create(key, m, m, **options)
        return drawn, {name: weights.matrix() for name, weights in drawn.items()}

    drawn, rows = jax.tree.map(np.asarray, draw(jax.random.key(0)))
    walsh = scipy.linalg.hadamard(n)
    d1, d2, d3 = map(np.diag, drawn["sorf"].flips[0])
    np.testing.assert_allclose(rows["sorf"], walsh @ d1 @ walsh @ d2 @ walsh @ d3 / n, atol=1e-5)
    food = drawn["fastfood"]
    s, g, b = (np.diag(v[0]) for v in (food.scale, food.gaussian, food.flips))
    permute = np.eye(n)[food.permutation[0].astype(int)]
    np.testing.assert_allclose(rows["fastfood"], s @ walsh @ g @ permute @ walsh @ b / n**0.5, atol=1e-5)
    shifts = [np.roll(drawn["scrf"].generators[0], i) for i in range(m)]
    np.testing.assert_allclose(rows["scrf"], drawn["scrf"].flips[0][:, None] * shifts, atol=1e-5)
    t = drawn["p_model"].diagonals[0, 0]
    np.testing.assert_allclose(rows["p_model"], scipy.linalg.toeplitz(t[4:], t[4::-1]), atol=1e-5)
    skew = np.where(np.tri(m) > 0, 1, -1)
    total = sum(
        scipy.linalg.circulant(g[4:]) @ (skew * scipy.linalg.circulant(h[4:]))
        for g, h in zip(drawn["rank"].diagonals[0], drawn["rank"].right[0], strict=True)
    )
    np.testing.assert_allclose(rows["rank"], total, atol=1e-5)


def test_rom_hybrid_is_a_tight_frame():
    w = WEIGHTS["rom"].create(jax.random.key(0), 6, 16).matrix()
    np.testing.assert_allclose(w.T @ w / 16, np.eye(6), atol=1e-5)


def test_simplex_rows_meet_at_equal_angles():
    corners = simplex(7)
    np.testing.assert_allclose(corners @ corners.T, np.where(np.eye(7), 1, -1 / 6), atol=1e-12)
    w = WEIGHTS["simrf"].create(jax.random.key(0), 6, 6, norms="sqrt").matrix()
    np.testing.assert_allclose(w @ w.T / 6, np.where(np.eye(6), 1, -1 / 5), atol=1e-5)


@pytest.mark.parametrize("num_rows", [2, 4, 9, 20])
def test_mm_moments_are_exact(num_rows):
    w = np.asarray(WEIGHTS["mm"].create(jax.random.key(0), 8, num_rows).matrix())
    np.testing.assert_allclose(w.mean(axis=0), 0, atol=1e-5)
    values = np.linalg.eigvalsh(w.T @ w / num_rows)
    rank = min(num_rows - 1, 8)
    np.testing.assert_allclose(values, [0] * (8 - rank) + [8 / rank] * rank, atol=1e-4)


def test_ssf_points_lie_on_the_sphere_and_apart():
    w = np.asarray(WEIGHTS["ssf"].create(jax.random.key(0), 8, 32, norms="sqrt").matrix())
    gram = w @ w.T / 8
    np.testing.assert_allclose(np.diag(gram), 1, atol=1e-5)
    assert (gram - np.eye(32)).max() < 0.75
    np.testing.assert_allclose(np.diag(gram, 16), 0, atol=1e-5)  # a quarter turn in every plane
    np.testing.assert_allclose(w.T @ w / 32, np.eye(8), atol=1e-4)


def test_sequences_are_even():
    u = np.asarray(jax.jit(lambda key: sobol(key, 16, 300))(jax.random.key(0)))
    assert u.min() > 0 and u.max() < 1
    np.testing.assert_array_equal(
        np.sort(np.floor(16 * u), axis=0), np.arange(16)[:, None].repeat(300, axis=1)
    )
    cells = np.floor(4 * u[:, :2]) @ [4, 1]
    np.testing.assert_array_equal(np.sort(cells), np.arange(16), err_msg="a net in the first two dimensions")
    u = np.asarray(jax.jit(lambda key: halton(key, 9, 40))(jax.random.key(0)))
    assert u.min() > 0 and u.max() < 1
    np.testing.assert_array_equal(np.sort(np.floor(9 * u[:, 1])), np.arange(9))
    assert len(set(np.floor(173 * u[:, 39]))) == 9
    assert np.abs(np.corrcoef(u[:, -1], u[:, -2])[0, 1]) < 0.95


@pytest.mark.parametrize("level, degree", [(1, 3), (2, 5)])
def test_sparse_grid_is_exact_to_its_degree(level, degree):
    dim = 5
    values, weight, count = _grid(dim, level)
    mass = weight * count
    assert mass.sum() == pytest.approx(1)
    assert mass @ np.square(values).sum(axis=1) == pytest.approx(dim)
    if degree == 5:
        assert mass @ (values**4).sum(axis=1) == pytest.approx(3 * dim)
        assert mass @ np.square(values).prod(axis=1) == pytest.approx(dim * (dim - 1) / 2)


def test_ssr_weights_sum_to_one_and_whole_blocks_have_covariance_identity():
    weights = WEIGHTS["ssr"].create(jax.random.key(0), 6, 1 + 2 * 14)
    assert float(_mean(weights, jnp.ones(29))) == pytest.approx(1, abs=1e-5)
    rows = weights.matrix()
    np.testing.assert_allclose(_mean(weights, rows), 0, atol=1e-5)
    np.testing.assert_allclose(_mean(weights, rows[:, :, None] * rows[:, None]), np.eye(6), atol=1e-4)


def test_quantiles_stay_monotone():
    weights = WEIGHTS["bbq"].create(jax.random.key(0), 3, 50)
    np.testing.assert_allclose(weights.matrix(), weights.scores, atol=1e-5)
    learned = dataclasses.replace(weights, log_slopes=jax.random.normal(jax.random.key(1), (8, 3)))
    order = np.argsort(weights.scores, axis=0)
    assert (np.diff(np.take_along_axis(np.asarray(learned.matrix()), order, axis=0), axis=0) > 0).all()


@pytest.mark.parametrize("name", ["orf", "simrf", "ssf"])
@pytest.mark.few(1)
def test_geometry_lowers_the_variance_of_positive_features(name):
    z = jax.random.normal(jax.random.key(0), (8,)) * 0.4

    def variance(family):
        estimate = jax.vmap(lambda key: jnp.exp(WEIGHTS[family].create(key, 8, 8).matrix() @ z).mean())
        return jax.jit(estimate)(jax.random.split(jax.random.key(1), 4000)).var()

    assert variance(name) < 0.9 * variance("gaussian")
