"""Tokens cut among devices: every kernel gives what it gives on one device, outputs and gradients."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxattn
from jaxattn.core.sequence import exclusive_scan, halo

LENGTH, HEADS, KV_HEADS, WIDTH = 48, 2, 1, 4
FEATURE_MAP = jaxattn.FeatureMap.create(jax.random.key(3), WIDTH, 6)


def positive(x):
    return 0.1 + abs(x)


def softmax(query, key, value, key_bias, own, **options):
    return jaxattn.dot_product_attention(query, key, value, key_bias=key_bias, **options)


def window(*args, **options):
    return softmax(*args, local_window_size=(7, 2), implementation="blockwise", **options)


def gated(query, key, value, key_bias, own, **options):
    where = {name: options[name] for name in ("segment_ids", "axis_name")}
    gate = jaxattn.energy_gate(own, alpha=2.0, tau=0.1, mask=key_bias > -jnp.inf, **where)
    return softmax(query, key, value, gate + key_bias, own, **options)


def lags(query, key, value, key_bias, own, **options):
    logits = jnp.arange(HEADS * 7.0).reshape(HEADS, 7) / 5
    return jaxattn.cross_correlation_attention(query, key, value, logits, key_bias=key_bias, **options)


def linear(query, key, value, key_bias, own, **options):
    return jaxattn.linear_attention(positive(query), positive(key), value, key_bias=key_bias, **options)


def decayed(query, key, value, key_bias, own, **options):
    key_bias = jnp.minimum(key_bias, 1)  # nothing divides by it
    return jaxattn.linear_attention(
        query, key, value, key_bias=key_bias, log_decay=-abs(own), normalize=False, **options
    )


def features(query, key, value, key_bias, own, **options):
    return jaxattn.random_feature_attention(query, key, value, FEATURE_MAP, key_bias=key_bias, **options)


def tree(query, key, value, key_bias, own, segment_ids, **options):
    assert segment_ids is None
    over = jaxattn.Tree.uniform(LENGTH, (3, 4))
    biases = [jnp.sin(jnp.arange(1.0 * b * b)).reshape(1, b, b) for b in over.branching]
    return jaxattn.hierarchical_attention(
        query, key, value, over, key_bias=key_bias, sibling_bias=biases, **options
    )


KERNELS = [softmax, window, gated, lags, linear, features, tree, decayed]
CASES = [
    pytest.param(kernel, is_causal, packed, id=f"{kernel.__name__}-{is_causal=}-{packed=}")
    for kernel in KERNELS
    for is_causal in (True, False)
    for packed in (False, True)
    if not (kernel is tree and packed) and not (kernel is decayed and not is_causal)
]


@functools.cache
def arrays():
    rng = np.random.default_rng(0)
    shapes = [(HEADS, WIDTH), (KV_HEADS, WIDTH), (KV_HEADS, 3), (HEADS,), (HEADS,)]
    query, key, value, key_bias, own = (
        jnp.asarray(rng.standard_normal((2, LENGTH, *shape)), jnp.float32) for shape in shapes
    )
    # Padding that covers a whole device's part, and large numbers on one device, which the others must survive.
    removed = (jnp.arange(LENGTH) >= 35) & (jnp.arange(2) == 1)[:, None]
    key_bias = jnp.where(removed[..., None], -jnp.inf, key_bias.at[:, 13:20].add(60))
    return query, key, value, key_bias, own


# Segments that end inside a device's part, at its end, and that span devices; in one row all is one segment.
SEGMENTS = jnp.stack([jnp.repeat(jnp.arange(5), jnp.array([5, 7, 3, 31, 2])), jnp.zeros(LENGTH, int)])


def with_gradients(call):
    def run(*args):
        def loss(*args):
            out = call(*args)
            return (jnp.cos(out) * jnp.arange(3.0)).sum(), out

        grads, out = jax.grad(loss, argnums=range(5), has_aux=True)(*args)
        return out, grads

    return jax.jit(run)


def sharded(call, devices):
    mesh = jax.make_mesh((devices,), ("sequence",), axis_types=(AxisType.Auto,))
    spec = P(None, "sequence")
    return jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)


@pytest.mark.parametrize("kernel, is_causal, packed", CASES)
@pytest.mark.few(2)
def test_parts_give_the_whole(kernel, is_causal, packed):
    ids = SEGMENTS if packed else jnp.zeros((2, LENGTH), int)

    def call(query, key, value, key_bias, own, ids, axis_name=None):
        options = {"segment_ids": ids if packed else None, "is_causal": is_causal, "axis_name": axis_name}
        return kernel(query, key, value, key_bias, own, **options)

    expected = with_gradients(functools.partial(call, ids=ids))(*arrays())
    for devices in (2, 4):
        parts = sharded(functools.partial(call, axis_name="sequence"), devices)
        found = with_gradients(lambda *args: parts(*args, ids))(*arrays())  # noqa: B023
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=2e-5)


def test_exclusive_scan_and_halo():
    """Of decimal numbers, put one behind the other: associative, and not commutative."""
    number, power = jnp.arange(1.0, 9)[None], jnp.full((1, 8), 10.0)

    def join(far, near):
        return far[0] * near[1] + near[0], far[1] * near[1]

    def run(number, power):
        own = number[:, 0], power[:, 0]
        scan = functools.partial(
            exclusive_scan, join, (0 * number[:, 0], 0 * power[:, 0] + 1), own, "sequence"
        )
        before, after = scan()[0], scan(reverse=True)[0]
        return before[:, None], after[:, None], halo(number, "sequence", 1, axis=1)

    before, after, nearest = sharded(run, 8)(number, power)
    assert before[0].tolist() == [0, 1, 12, 123, 1234, 12345, 123456, 1234567]
    assert after[0].tolist() == [8765432, 876543, 87654, 8765, 876, 87, 8, 0]
    assert nearest[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_convolutions_exchange_what_they_read_across_cuts():
    """By the compiler, where the tokens of their input are cut: neighbours' tokens, and no others."""
    mesh = jax.make_mesh((4,), ("sequence",), axis_types=(AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (2, LENGTH, 8))
    kernels = [jax.random.normal(jax.random.key(width), (width, 8, 3)) for width in (2, 5)]

    def run(x, kernels):
        return jax.value_and_grad(lambda *a: jnp.sin(jaxattn.multi_scale_conv(*a)).sum(), (0, 1))(x, kernels)

    cut = jax.device_put(x, NamedSharding(mesh, P(None, "sequence")))
    compiled = jax.jit(run).lower(cut, kernels).compile()
    moved = re.findall(r"(all-gather|all-to-all|collective-permute)[\w-]*\(", compiled.as_text())
    assert set(moved) == {"collective-permute"}
    chex.assert_trees_all_close(compiled(cut, kernels), run(x, kernels), rtol=1e-4, atol=1e-4)


def families_of_seven(query, key, value, key_bias, own, **options):
    return jaxattn.hierarchical_attention(query, key, value, jaxattn.Tree.uniform(LENGTH, 7), **options)


def in_parts(kernel, devices=2, **options):
    def call(x):
        return kernel(x, x, x, None, None, axis_name="sequence", **options)

    return sharded(call, devices)


@pytest.mark.usefixtures("no_typecheck")
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: softmax(x, x, x, None, None, axis_name="sequence"), "axis_name must be an axis"),
        (lambda x: softmax(x, x, x, None, None, axis_name=3), "axis_name must be an axis .* got 3"),
        (
            lambda x: softmax(x, x, x, None, None, axis_name=("x",)),
            r"axis_name must be an axis .* got \('x',\)",
        ),
        (sharded(lambda x: halo(x, "sequence", 9, axis=1), 8), "at least 9 tokens"),
        (in_parts(softmax, query_offset=3), "query_offset cannot be used with axis_name"),
        (in_parts(softmax, mask=jnp.ones((1, 2, 24, 24), bool)), "the same for all queries"),
        (in_parts(linear, implementation="pallas"), "takes no axis_name"),
        (in_parts(families_of_seven, devices=8), "whole on every device"),
    ],
    ids=["no axis", "a number", "a tuple", "halo", "offset", "mask", "pallas", "tree"],
)
def test_what_cannot_be_cut_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((1, LENGTH, 2, 4)))
