"""Key biases carried by columns of the keys, with XLA in place of the fused kernels: as exact as the bias itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.core.call import check_call
from jaxattn.core.padding import zero_padding
from jaxattn.softmax.key_columns import with_key_columns
from jaxattn.softmax.xla import xla_attention
from tests.reference import naive_attention

# Compilers fuse the scale into the subtraction of a row's maximum, which a bias of -1e30 would not survive.
pytestmark = pytest.mark.usefixtures("optimised")

B, T, N, K = 2, 24, 4, 2
RNG = np.random.default_rng(0)
PADDED = (jnp.arange(T) < jnp.array([[0], [9]]))[..., None]
RAMP = jnp.linspace(-1000.0, 1000.0, T)[None, :, None] * jnp.asarray([1.0, 0.3, 0.03, -1.0])


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


# (size of the products scale q·k, key bias); every call is causal, and every head has its own bias unless shared.
CASES = {
    "products of -96 beside padding": (-96.0, jnp.where(PADDED, -jnp.inf, jnp.zeros((B, T, N)))),
    "products of 96 beside padding": (96.0, jnp.where(PADDED, -jnp.inf, jnp.zeros((B, T, N)))),
    "rising, so that early rows lie far below the largest": (1.0, jnp.broadcast_to(RAMP, (B, T, N))),
    "anything between -1000 and 1000": (1.0, 1000 * jnp.asarray(RNG.uniform(-1, 1, (B, T, N)), jnp.float32)),
    "gates": (1.0, jax.nn.log_sigmoid(3 * normal(B, T, N))),
    "rows without keys": (
        1.0,
        jnp.where(jnp.arange(T)[:, None] < jnp.arange(N) * 9, -jnp.inf, normal(B, T, N)),
    ),
    "shared by the heads": (1.0, jnp.where(PADDED, -jnp.inf, 50 * normal(B, T, 1))),
}
KINDS = {
    "bfloat16, 64": (jnp.bfloat16, 64, None),
    "bfloat16, 72": (jnp.bfloat16, 72, None),
    "bfloat16, 256": (jnp.bfloat16, 256, None),
    "float16, 128": (jnp.float16, 128, None),
    "float32, 16": (jnp.float32, 16, 0.01),
}


def by_columns(call):
    return xla_attention(with_key_columns(call))[0]


def directly(call):
    return xla_attention(call)[0]


@jax.jit(static_argnames=("attend", "scale"))
def results(query, key, value, key_bias, weights, *, attend, scale):
    """Output and all gradients, float32."""

    def loss(*args):
        if attend is naive_attention:
            out = naive_attention(*args, scale=scale, is_causal=True)
        else:
            *qkv, bias = args
            call = zero_padding(check_call(*qkv, key_bias=bias, scale=scale, is_causal=True))
            out = call.merge_heads(attend(call)).astype(jnp.float32)
        return (out * weights).sum(), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(query, key, value, key_bias)
    return out, *grads


def errors(dtype, width, scale, case, attend):
    """Of the output and of each gradient, relative to its largest entry."""
    size, key_bias = CASES[case]
    query, key, value = normal(B, T, N, width), normal(B, T, K, width), normal(B, T, K, width)
    if abs(size) > 1:  # products of about `size`, the same for all pairs but for noise
        root = (abs(size) / width / (scale or width**-0.5)) ** 0.5
        query, key = root * (np.sign(size) + 0.01 * query), root * (1 + 0.01 * key)
    args = [x.astype(dtype) for x in (query, key, value)]
    weights = normal(B, T, N, width)
    got = results(*args, key_bias, weights, attend=attend, scale=scale)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x, np.float64)) for x in (*args, key_bias, weights)]
        expected = [np.asarray(x) for x in results(*exact, attend=naive_attention, scale=scale)]
    return np.array([
        abs(np.asarray(a, np.float64) - e).max() / max(abs(e).max(), 1e-3) for a, e in zip(got, expected, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.few(4)
def test_columns_are_as_exact_as_the_bias(kind, case):
    """Within twice the error of the same sums with the bias added in float32, and a rounding of the dtype."""
    dtype, width, scale = KINDS[kind]
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
    columns = errors(dtype, width, scale, case, by_columns)
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
    direct = errors(dtype, width, scale, case, directly)
    rounding = max(float(jnp.finfo(dtype).eps), 2e-5)
    assert (columns <= 2 * direct + 2 * rounding).all(), (columns, direct)


def test_rows_without_keys_give_nothing_and_send_nothing_back():
    query, key, value = normal(B, T, N, 8), normal(B, T, K, 8), normal(B, T, K, 8)
    key_bias = jnp.where(jnp.arange(T)[:, None] < 5, -jnp.inf, normal(B, T, N))

    def attend(*args):
        *qkv, bias = args
        call = zero_padding(check_call(*qkv, key_bias=bias, is_causal=True))
        return call.merge_heads(by_columns(call))[:, :5]

    @jax.jit
    def both(weights, *args):
        out, vjp = jax.vjp(attend, *args)
        return out, *vjp(weights)

    for array in both(normal(B, 5, N, 8), query, key, value, key_bias):
        assert (array == 0).all()
