"""The fused kernel for NVIDIA GPUs: what it refuses, and values and gradients as interpreted on a CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as interpreter  # where found races are
from jax._src.pallas.mosaic_gpu.interpret import params

import jaxattn
from jaxattn.linear.implementation import Fused, choose_implementation, mosaic_gpu_cannot
from jaxattn_train.compiler.flops import product_flops
from jaxattn_train.compiler.kernels import kernel_moves
from tests.linear import fused_cases
from tests.linear.fused_cases import Case, checked

KERNEL = Fused(64, "mosaic_gpu")
interpreted = pytest.mark.skipif(
    jax.__version_info__ < (0, 12),
    reason="the GPU interpreter of jax 0.10.2 lacks layout_cast and transposed operands of wgmma",
)


@pytest.fixture
def on_gpu():
    """Kernels are interpreted, with races looked for."""
    with params.force_gpu_interpret_mode(params.InterpretGPUParams(detect_races=True)):
        yield
    races = interpreter.get_races().races_found
    interpreter.reset_gpu_interpret_mode_state()
    assert not races


GIVEN = Case(None, length=70, width=12, value_width=5, kv_heads=1)
CASES = {
    "given": GIVEN,
    "weighed apart in a group": dataclasses.replace(GIVEN, bias_heads=2, batch=2),
    "large biases": dataclasses.replace(GIVEN, bias=30.0, length=130),
    "parts": dataclasses.replace(GIVEN, width=65, value_width=130, size=0.5),
    "no bias, whole chunks": dataclasses.replace(GIVEN, length=64, bias=None, width=64, value_width=64),
    "one token": dataclasses.replace(GIVEN, length=1, key_length=4),
    "more keys": dataclasses.replace(GIVEN, length=9, key_length=70),
    "segments over chunk borders": dataclasses.replace(GIVEN, segments=5, length=71, batch=2),
    "long segments, large biases": dataclasses.replace(GIVEN, segments=90, length=200, bias=10.0),
    "removed segments": dataclasses.replace(GIVEN, segments=2, length=65, value_width=65, bias_heads=2),
    "both signs": Case(("trigrf", "orf", {}, 12), size=0.5, kv_heads=1, length=70),
    "positive": Case(("oprf", "orf", {}, 12), size=0.5, kv_heads=1, length=70),
    "positive, a matrix a head": Case(("posrf", "orf", {}, 70), heads=4, width=65, per_head=True),
    "positive, per key": Case(("gerf", "orf", {}, 12), stabilizer="per_key", batch=2, bias_heads=2),
    "positive, with a norm": Case(("saderf", "orf", {}, 12), size=0.5),
    "positive in segments": Case(("oprf", "orf", {}, 12), size=0.5, kv_heads=1, length=70, segments=66),
    "discrete": Case(("poisrf", "orf", {}, 12), size=0.5, kv_heads=1),
}


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, on_gpu):
    # Discrete features in bfloat16 give the same function in XLA gradients that err by up to 0.15.
    max_error = 0.1 if name == "discrete" else 2e-2
    fused_cases.check(CASES[name], KERNEL, jnp.bfloat16, max_error=max_error)


def attend(x, **options):
    return jaxattn.linear_attention(x, x, x, is_causal=True, implementation="mosaic_gpu", **options)


@interpreted
@pytest.mark.slow
def test_batched_and_differentiated_twice(on_gpu):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 1, 70, 1, 8)), jnp.bfloat16)

    @jax.jit
    def second(x):
        return jax.jvp(jax.grad(lambda x: (jax.vmap(attend)(x).astype(jnp.float32) ** 2).sum()), (x,), (x,))[
            1
        ]

    # Attention of values that grow with its inputs: both derivatives of a function of degree 2.
    got, (once,) = second(x), jax.vjp(lambda x: jax.vmap(attend)(x), x)[1](2 * jax.vmap(attend)(x))
    np.testing.assert_allclose(
        *(np.asarray(a, np.float32) for a in (got, once)), rtol=0, atol=3e-2 * abs(once).max()
    )


def total(phi, x, segment_ids=None):
    options = {"is_causal": True, "segment_ids": segment_ids, "implementation": "mosaic_gpu"}
    return jaxattn.linear_attention(phi, phi, x, **options).astype(jnp.float32).sum()


def test_traced_in_both_precisions_and_its_products_counted():
    """Everywhere, as there is no device: forward and three more sweeps, of heads, chunks and parts."""
    x, wide = (jnp.ones((2, 130, 3, width), jnp.bfloat16) for width in (64, 128))

    jaxpr = jax.make_jaxpr(total)(wide, x)
    tokens = 2 * 3 * 192
    assert product_flops(jaxpr) == 2 * tokens * (64 * 128 + 64 * 64 + 2 * 128 * 64)
    assert kernel_moves(jaxpr) == {}
    with jax.enable_x64(True):
        of_phi = jax.eval_shape(jax.grad(total), wide, x)
    assert of_phi.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("segment_ids", [None, jnp.ones((1, 130), int)], ids=["whole", "segments"])
def test_lowered_for_a_gpu(segment_ids):
    """Layouts of everything in registers are found, everywhere too."""
    x = jnp.ones((1, 130, 1, 64), jnp.bfloat16)
    traced = jax.jit(jax.grad(total, (0, 1))).trace(x, x, segment_ids)
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


LIMITS = {
    "fine": (GIVEN, jnp.bfloat16, None, None),
    "full": (dataclasses.replace(GIVEN, causal=False), jnp.bfloat16, None, "takes causal attention only"),
    "segments": (dataclasses.replace(GIVEN, segments=5), jnp.bfloat16, None, None),
    "float32": (GIVEN, jnp.float32, None, "in bfloat16 only"),
    "chunk": (GIVEN, jnp.bfloat16, 128, "has chunks of 64 tokens; got a chunk_size of 128"),
    "features": (
        dataclasses.replace(GIVEN, width=300),
        jnp.bfloat16,
        None,
        "features up to a width of 256",
    ),
    "values": (
        dataclasses.replace(GIVEN, value_width=257),
        jnp.bfloat16,
        None,
        "value up to a width of 256",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name):
    case, dtype, chunk_size, message = LIMITS[name]
    call, _, number = checked(case, dtype)
    reason = mosaic_gpu_cannot(call, number, chunk_size)
    assert reason is None if message is None else message in reason


def test_taken_by_name_only():
    call, *_ = checked(GIVEN, jnp.bfloat16)
    assert choose_implementation(call, None, "mosaic_gpu", None, "cuda") == KERNEL
    assert not isinstance(choose_implementation(call, None, None, None, "cuda"), Fused)
    x = jnp.ones((1, 4, 2, 8))
    with pytest.raises(
        ValueError, match="implementation='mosaic_gpu' takes queries, keys and values in bfloat16"
    ):
        attend(x)
    with pytest.raises(
        ValueError, match="implementation='mosaic_gpu' takes neither normalize=False nor log_decay"
    ):
        attend(x, normalize=False)
