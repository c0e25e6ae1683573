import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import multi_scale_conv

WIDTHS, FILTERS, D = (1, 2, 3, 7), (2, 3, 4, 5), 6


def make(seed=0, length=5, batch=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, length, D))
    kernels = [rng.normal(size=(w, D, f)) for w, f in zip(WIDTHS, FILTERS, strict=True)]
    return x, kernels, [rng.normal(size=f) for f in FILTERS]


def naive(x, kernels, biases, mask):
    """y_i = sum_t x_{i + t − (w−1)//2} K_t + b, by loops in float64."""
    x = np.where(mask[..., None], x, 0)
    joined = []
    for kernel, bias in zip(kernels, biases, strict=True):
        width = len(kernel)
        y = np.zeros((*x.shape[:2], kernel.shape[-1])) + bias
        for i in range(x.shape[1]):
            for t in range(width):
                j = i + t - (width - 1) // 2
                if 0 <= j < x.shape[1]:
                    y[:, i] += x[:, j] @ kernel[t]
        joined.append(y)
    return np.where(mask[..., None], np.concatenate(joined, axis=-1), 0)


def single(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def test_it_is_the_sum_it_says():
    x, kernels, biases = make()
    mask = np.arange(5) < np.array([[5], [1], [3]])
    expected = naive(x, kernels, biases, mask)
    poisoned = jnp.where(mask[..., None], single(x), jnp.nan)
    got = jax.jit(multi_scale_conv)(poisoned, single(kernels), single(biases), mask=jnp.asarray(mask))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    alone = multi_scale_conv(single(x[0]), single(kernels), single(biases))
    np.testing.assert_allclose(alone, expected[0], atol=1e-5)
    without = multi_scale_conv(single(x[0]), single(kernels))
    np.testing.assert_allclose(without, expected[0] - np.concatenate(biases), atol=1e-5)


def test_padding_on_either_side_changes_nothing_and_no_gradient():
    x, kernels, biases = single(make())

    def run(x, mask=None):
        return multi_scale_conv(x, kernels, biases, mask=mask)

    mask = (jnp.arange(11) >= 3) & (jnp.arange(11) < 8)
    padded = jnp.full((3, 11, D), jnp.nan).at[:, 3:8].set(x)
    whole = jnp.broadcast_to(mask, (3, 11))
    np.testing.assert_allclose(jax.jit(run)(padded, whole)[:, 3:8], jax.jit(run)(x), rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: (run(x, whole) ** 2).sum()))(padded)
    assert np.isfinite(gradient).all()
    assert (gradient[:, :3] == 0).all()
    assert (abs(gradient[:, 3:8]) > 0).all()


@pytest.mark.usefixtures("no_typecheck")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": []}, "kernels must hold at least one"),
        ({"kernels": [jnp.ones((2, D + 1, 3))]}, r"kernels\[0\] must have shape \(w, D, F\)"),
        ({"kernels": [jnp.ones((0, D, 3))]}, r"kernels\[0\] must have a width of at least 1"),
        ({"kernels": [jnp.ones((2, D))]}, r"kernels\[0\] must have shape"),
        ({"biases": [jnp.ones(2)] * 2}, "biases must have one array per kernel, 1; got 2"),
        ({"biases": [jnp.ones(2)]}, r"biases\[0\] must have shape"),
        ({"mask": jnp.ones((1, 4))}, "mask must be boolean"),
        ({"mask": jnp.ones((1, 5), bool)}, r"mask must have shape \(B, L\) = \(1, 4\)"),
        ({"x": jnp.ones((1, 4, D), int)}, "x must be floating"),
        ({"x": jnp.ones(4)}, "x must have shape"),
    ],
)
def test_bad_arguments_are_named(change, message):
    given = {
        "x": jnp.ones((1, 4, D)),
        "kernels": [jnp.ones((2, D, 3))],
        "biases": None,
        "mask": None,
    } | change
    with pytest.raises(ValueError, match=message):
        multi_scale_conv(given["x"], given["kernels"], given["biases"], mask=given["mask"])
