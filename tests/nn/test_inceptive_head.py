"""The heads against NumPy in float64, and what must not depend on padding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn.nn import InceptiveHead, PoolingHead

D, CLASSES, B, L = 10, 3, 4, 7
LENGTHS = np.array([7, 1, 4, 5])
SIZES = {"kernels": (2, 3), "filters": 3, "num_heads": 4, "hidden_features": 12}
OPTIONS = {
    "plain": {},
    "batch": {"normalization": "batch"},
    "layer, gelu, learned pool": {"normalization": "layer", "activation": "gelu", "pooling": "attention"},
    "cls, tanh": {"activation": "tanh", "pooling": "cls"},
    "no convolution": {"convolution": False, "num_heads": 5},
    "no attention, silu, max": {"attention": False, "activation": "silu", "pooling": "max"},
    "neither": {"convolution": False, "attention": None, "pooling": "attention"},
}
MECHANISMS = ["tree:4x2", "features:oprf-orf:8", "softmax+gate=sequence", "lags:2"]


def make(**options):
    return InceptiveHead(D, CLASSES, **(SIZES | options), rngs=nnx.Rngs(0))


def randomised(head):
    """All parameters and statistics away from their initial zeros and ones."""
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(head)):
        noise = rng.normal(size=variable[...].shape) * 0.3
        if path[-1] == "var":
            noise = abs(noise) + 0.5
        variable[...] = variable[...] * (0 if path[-1] == "var" else 1) + noise.astype(np.float32)
        nnx.update(head, nnx.from_flat_state([(path, variable)]))
    return head


@pytest.fixture(scope="module")
def inputs():
    hidden = jax.random.normal(jax.random.key(1), (B, L, D))
    return hidden, jnp.arange(L) < LENGTHS[:, None]


evaluate = nnx.jit(lambda head, hidden, mask: head(hidden, mask))


@nnx.jit
def train(head, hidden, mask):
    return head(hidden, mask, deterministic=False)


def naive(head, hidden, lengths, training=False):
    """The formula of the docstring, row by row over real tokens."""
    p = {".".join(map(str, k)): np.asarray(v[...], np.float64) for k, v in nnx.to_flat_state(nnx.state(head))}
    gelu = lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # noqa: E731
    act = {
        "relu": lambda x: np.maximum(x, 0),
        "tanh": np.tanh,
        "gelu": gelu,
        "silu": lambda x: x / (1 + np.exp(-x)),
    }
    rows = [np.asarray(h[:n], np.float64) for h, n in zip(hidden, lengths, strict=True)]

    def layer(x, name):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p[
            f"{name}.scale"
        ] + p[f"{name}.bias"]

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    if "kernels.0" in p:
        convolved = []
        for x in rows:
            branches = []
            for i in range(len(SIZES["kernels"])):
                kernel, y = p[f"kernels.{i}"], np.zeros((len(x), SIZES["filters"]))
                for place in range(len(x)):
                    for t in range(len(kernel)):
                        j = place + t - (len(kernel) - 1) // 2
                        if 0 <= j < len(x):
                            y[place] += x[j] @ kernel[t]
                branches.append(y + p[f"biases.{i}"])
            convolved.append(np.concatenate(branches, -1))
        if "norm.mean" in p:
            every = np.concatenate(convolved)
            mean, var = (every.mean(0), every.var(0)) if training else (p["norm.mean"], p["norm.var"])
            convolved = [
                (y - mean) / np.sqrt(var + 1e-5) * p["norm.scale"] + p["norm.bias"] for y in convolved
            ]
        elif "norm.scale" in p:
            convolved = [layer(y, "norm") for y in convolved]
        rows = [
            np.concatenate([x, act[head.activation](y)], -1) for x, y in zip(rows, convolved, strict=True)
        ]
    if "attention.query.kernel" in p:
        attended = []
        for x in rows:
            q, k, v = (
                np.einsum("ld,dnh->nlh", x, p[f"attention.{n}.kernel"]) + p[f"attention.{n}.bias"][:, None]
                for n in ("query", "key", "value")
            )
            heads = softmax(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])) @ v
            attended.append(
                np.einsum("nlh,nhd->ld", heads, p["attention.out.kernel"]) + p["attention.out.bias"]
            )
        rows = attended
    pools = {
        "mean": lambda x: x.mean(0),
        "max": lambda x: x.max(0),
        "cls": lambda x: x[0],
        "attention": lambda x: softmax(x @ p["pooling.weights"]) @ x,
    }
    y = np.stack([pools[head.pooling.kind](x) for x in rows])
    y = layer(np.maximum(y @ p["hidden.kernel"] + p["hidden.bias"], 0), "hidden_norm")
    return y @ p["out.kernel"] + p["out.bias"]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.few(4)
def test_it_is_the_formula(options, inputs):
    hidden, mask = inputs
    head = randomised(make(dropout=0.0, **options))
    poisoned = jnp.where(mask[..., None], hidden, jnp.nan)
    logits = evaluate(head, poisoned, mask)
    assert logits.shape == (B, CLASSES)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, naive(head, hidden, LENGTHS), rtol=2e-4, atol=2e-4)
    if options.get("normalization") == "batch":
        expected = naive(head, hidden, LENGTHS, training=True)
        np.testing.assert_allclose(train(head, poisoned, mask), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    "options", [*OPTIONS.values(), *({"attention": m} for m in MECHANISMS)], ids=[*OPTIONS, *MECHANISMS]
)
@pytest.mark.few(4)
def test_padding_further_changes_no_logit_and_no_statistic(options, inputs):
    hidden, mask = inputs
    wide = jnp.full((B, L + 5, D), jnp.nan).at[:, :L].set(jnp.where(mask[..., None], hidden, jnp.nan))
    wide_mask = jnp.zeros((B, L + 5), bool).at[:, :L].set(mask)
    near, far = randomised(make(dropout=0.0, **options)), randomised(make(dropout=0.0, **options))
    np.testing.assert_allclose(evaluate(far, wide, wide_mask), evaluate(near, hidden, mask), atol=1e-6)
    if options.get("normalization") == "batch":
        np.testing.assert_allclose(train(far, wide, wide_mask), train(near, hidden, mask), atol=1e-6)
        for a, b in zip(
            jax.tree.leaves(nnx.state(far, nnx.BatchStat)),
            jax.tree.leaves(nnx.state(near, nnx.BatchStat)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_running_statistics_are_of_the_real_tokens(inputs):
    hidden, mask = inputs
    head = make(normalization="batch", kernels=(1,), filters=2, num_heads=4, dropout=0.0)
    train(head, hidden, mask)
    real = np.asarray(hidden)[np.asarray(mask)] @ np.asarray(head.kernels[0][...])[0]
    np.testing.assert_allclose(head.norm.mean[...], 0.1 * real.mean(0), atol=1e-5)
    np.testing.assert_allclose(head.norm.var[...], 0.9 + 0.1 * real.var(0), atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.few(3)
def test_gradients_reach_every_parameter_and_are_finite(options, inputs):
    hidden, mask = inputs
    head = randomised(make(**options))

    @nnx.jit
    def gradients(head, hidden):
        def loss(head, hidden):
            rngs = nnx.Rngs(dropout=0)
            return (head(hidden, mask, deterministic=False, rngs=rngs) ** 2).sum()

        return nnx.grad(loss, argnums=(0, 1))(head, hidden)

    of_head, of_hidden = gradients(head, jnp.where(mask[..., None], hidden, jnp.nan))
    for path, gradient in nnx.to_flat_state(of_head):
        assert np.isfinite(gradient[...]).all(), path
        # A constant added to all scores of a query changes nothing.
        assert (abs(gradient[...]).max() > 0) or path[-2:] == ("key", "bias"), path
    assert np.isfinite(of_hidden).all()
    assert (np.asarray(of_hidden)[~np.asarray(mask)] == 0).all()


def test_dropout_needs_a_key_and_evaluation_does_not(inputs):
    hidden, mask = inputs
    head = make(dropout=0.5)
    dropped = [head(hidden, mask, deterministic=False, rngs=nnx.Rngs(dropout=i)) for i in (0, 1, 0)]
    assert abs(dropped[0] - dropped[1]).max() > 1e-3
    np.testing.assert_array_equal(dropped[0], dropped[2])
    np.testing.assert_array_equal(head(hidden, mask), head(hidden, mask.astype(jnp.int32)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_plain_head(pooling, inputs):
    hidden, mask = inputs
    head = PoolingHead(D, CLASSES, pooling=pooling, rngs=nnx.Rngs(0))
    poisoned = jnp.where(mask[..., None], hidden, jnp.nan)
    rows = [np.asarray(h[:n], np.float64) for h, n in zip(hidden, LENGTHS, strict=True)]
    pooled = np.stack([x[0] if pooling == "cls" else x.mean(0) for x in rows])
    np.testing.assert_allclose(
        evaluate(head, poisoned, mask), pooled @ np.asarray(head.out.kernel[...]), atol=1e-5
    )
    relevance = head.relevance(poisoned, mask)
    if pooling == "cls":
        np.testing.assert_array_equal(relevance, np.eye(L)[[0] * B])
    # Left padding: the first real token is not column 0.
    np.testing.assert_allclose(head(hidden[:, ::-1], mask[:, ::-1])[1], head(hidden[1:2, :1])[0], atol=1e-6)


@pytest.mark.parametrize("attention", ["softmax", "tree:4x2", None])
def test_relevance_is_gradient_times_input_over_the_real_tokens(attention, inputs):
    hidden, mask = inputs
    head = randomised(make(attention=attention))
    relevance = nnx.jit(lambda head, hidden, mask: head.relevance(hidden, mask))(head, hidden, mask)
    np.testing.assert_allclose(relevance.sum(axis=1), 1, atol=1e-5)
    assert (np.asarray(relevance)[~np.asarray(mask)] == 0).all()
    # The derivative along each token's own direction, by differences.
    chosen = evaluate(head, hidden, mask).argmax(-1)
    size = np.zeros((B, L))
    for token in range(L):
        up, down = (
            evaluate(head, hidden.at[:, token].multiply(1 + step), mask)[np.arange(B), chosen]
            for step in (1e-2, -1e-2)
        )
        size[:, token] = abs(up - down) / 2e-2
    np.testing.assert_allclose(relevance, size / size.sum(axis=1, keepdims=True), atol=0.03)


@pytest.mark.usefixtures("no_typecheck")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, r"num_heads must divide .* = 16; got 3, accepted: 1, 2, 4, 8, 16"),
        ({"kernels": ()}, "kernels must be one or more"),
        ({"kernels": (0,)}, "kernels must be one or more"),
        ({"filters": 0}, "filters must be at least 1"),
        ({"normalization": "group"}, "normalization must be one of 'none', 'batch', 'layer'"),
        ({"activation": "sine"}, "activation must be one of"),
        ({"pooling": "sum"}, "pooling must be one of"),
        ({"attention": "nonsense"}, "attention 'nonsense': 'nonsense' is not known"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"hidden_features": 0}, "hidden_features must be at least 1"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


@pytest.mark.usefixtures("no_typecheck")
def test_bad_inputs_are_named():
    for head in (make(), PoolingHead(D, CLASSES, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match=r"hidden must have shape \(B, L, features\) = \(1, 4, 10\)"):
            head(jnp.ones((1, 4, D + 1)))
        with pytest.raises(ValueError, match=r"attention_mask must have shape \(B, L\) = \(1, 4\)"):
            head(jnp.ones((1, 4, D)), jnp.ones((1, 5), bool))
    with pytest.raises(ValueError, match="pooling must be one of 'mean', 'max', 'cls', 'attention'"):
        PoolingHead(D, CLASSES, pooling="sum", rngs=nnx.Rngs(0))
