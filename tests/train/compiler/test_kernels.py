"""What Pallas kernels move, on kernels whose traffic is known by hand."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.extend.core import jaxprs_in_params

import jaxattn
from jaxattn.core.call import check_call
from jaxattn.softmax.splash import splash_attention
from jaxattn_train.compiler.kernels import kernel_moves
from jaxattn_train.compiler.traffic import hbm_bytes


def moves(function, *shapes, dtype="float32"):
    return kernel_moves(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)))


def blocked_product(a, b, rows=128, columns=128, inner=128):
    def kernel(a, b, out):
        out[...] = jnp.where(pl.program_id(2) == 0, 0, out[...]) + a[...] @ b[...]

    return pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((a.shape[0], b.shape[1]), a.dtype),
        grid=(a.shape[0] // rows, b.shape[1] // columns, a.shape[1] // inner),
        in_specs=[
            pl.BlockSpec((rows, inner), lambda i, j, k: (i, k)),
            pl.BlockSpec((inner, columns), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((rows, columns), lambda i, j, k: (i, j)),
        name="blocked_product",
    )(a, b)


def test_a_blocked_product_reads_its_factors_again():
    """A for every column of blocks, B for every row of them."""
    assert moves(blocked_product, (256, 384), (384, 512)) == {"blocked_product": (4.0, 2.0, 1.0)}
    # With whole rows of A at once, they stay for all columns.
    whole = functools.partial(blocked_product, inner=384)
    assert moves(jax.jit(whole), (256, 384), (384, 512)) == {"blocked_product": (1.0, 2.0, 1.0)}


def test_the_last_block_counts_as_far_as_it_lies_in_the_array():
    def copy(x, out):
        out[...] = x[...]

    spec = pl.BlockSpec((128,), lambda i: i)
    kernel = pl.pallas_call(
        copy, jax.ShapeDtypeStruct((300,), "float32"), grid=3, in_specs=[spec], out_specs=spec, name="copy"
    )
    assert moves(kernel, (300,)) == {"copy": (1.0, 1.0)}


def test_splash_reads_keys_for_every_block_of_queries():
    """One head, four blocks of 512 tokens; a causal mask leaves 1 + 2 + 3 + 4, of which one is there already."""

    def attend(query, is_causal):
        return splash_attention(check_call(query, query, query, is_causal=is_causal))

    (full,) = moves(functools.partial(attend, is_causal=False), (1, 2048, 1, 128)).values()
    (causal,) = moves(functools.partial(attend, is_causal=True), (1, 2048, 1, 128)).values()
    assert 4.0 in full and 9 / 4 in causal, (full, causal)


def test_a_kernel_in_a_program():
    hlo = """ENTRY %main (a: f32[256,384], b: f32[384,512]) -> f32[256,512] {
      %a = f32[256,384]{1,0} parameter(0)
      %b = f32[384,512]{1,0} parameter(1)
      ROOT %blocked_product.1 = f32[256,512]{1,0} custom-call(%a, %b), custom_call_target="tpu_custom_call"
    }"""
    a, b, out = 4 * 256 * 384, 4 * 384 * 512, 4 * 256 * 512
    assert hbm_bytes(hlo) == a + b + out
    assert hbm_bytes(hlo, {"blocked_product": (4.0, 2.0, 1.0)}) == 4 * a + 2 * b + out


def test_linear_attention_moves_every_array_once():
    feature_map = jaxattn.FeatureMap.create(jax.random.key(0), 64, 32)

    def attend(options, query, key, value):
        return jaxattn.random_feature_attention(
            query, key, value, feature_map, implementation="pallas", **options
        ).sum()

    segments = {"segment_ids": jnp.arange(1000)[None].repeat(2, 0) // 300}
    for options, number in (({}, 4), ({"is_causal": True}, 2), (segments, 4)):
        gradient = jax.grad(functools.partial(attend, options), (0, 1, 2))
        shapes = (jax.ShapeDtypeStruct((2, 1000, heads, 64), "float32") for heads in (4, 2, 2))
        jaxpr = jax.make_jaxpr(gradient)(*shapes)
        found = kernel_moves(jaxpr)
        assert len(found) == number
        for equation in kernels(jaxpr.jaxpr):
            moved = found[equation.params["name"]]
            arrays = [x.aval for x in (*equation.invars, *equation.outvars)]
            # Segments are numbered once for both heads.
            assert moved == tuple(2 if x.shape[:3] == (2, 1, 1) else 1 for x in arrays), found
            assert equation.params["cost_estimate"].bytes_accessed == sum(
                times * x.size * x.dtype.itemsize for x, times in zip(arrays, moved, strict=True)
            )


def kernels(jaxpr):
    """The calls of Pallas kernels in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for body in jaxprs_in_params(equation.params):
                yield from kernels(body)
