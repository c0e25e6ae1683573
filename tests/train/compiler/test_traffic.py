"""The counter of HBM bytes, on programs whose traffic is known by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxattn_train.compiler.traffic import hbm_bytes

OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def count(function, *shapes, dtype="float32"):
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return hbm_bytes(jax.jit(function).lower(*arguments).compile(OPTIMISED).as_text())


K = 1024


def test_a_fused_expression_reads_and_writes_each_array_once():
    assert count(lambda x, y: jnp.tanh(x * y) + 1, (K,), (K,)) == 3 * 4 * K
    assert count(lambda x: x.astype(jnp.bfloat16), (K,)) == (4 + 2) * K


def test_a_matrix_product_reads_both_factors():
    assert count(lambda x, y: x @ y, (256, 128), (128, 64)) == 4 * (256 * 128 + 128 * 64 + 256 * 64)


def test_a_slice_counts_as_the_slice():
    assert count(lambda x: jax.lax.slice(x, (8, 0), (16, K)) * 2, (64, K)) == 2 * 4 * 8 * K
    assert count(lambda x, i: x[i[0].astype(int)] * 2, (64, K), (1,)) == pytest.approx(2 * 4 * K, abs=100)


def test_a_loop_counts_as_often_as_it_runs():
    """Each round reads a matrix and a vector and writes a vector."""

    def power(matrix, x):
        return jax.lax.fori_loop(0, 10, lambda _, x: matrix @ x, x)

    assert count(power, (K, K), (K,)) == pytest.approx(10 * 4 * (K * K + 2 * K), rel=1e-2)


def test_a_loop_over_stacked_arrays_reads_and_writes_slices():
    def waves(xs):
        return jax.lax.scan(lambda carry, x: (carry, jnp.sin(x)), 0.0, xs)[1]

    def total(xs):
        return jax.lax.scan(lambda total, x: (total + x, None), jnp.zeros(K), xs)[0]

    size = 4 * 64 * K
    assert count(waves, (64, K)) == pytest.approx(3 * size, rel=0.02), "zeros are written first"
    assert count(total, (64, K)) == pytest.approx(3 * size, rel=0.05), "every round reads and writes the sum"


def test_nested_loops_multiply():
    def nested(matrix, x):
        inner = lambda _, x: matrix @ x  # noqa: E731
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(jax.lax.fori_loop(0, 5, inner, x)), x)

    assert count(nested, (K, K), (K,)) == pytest.approx(15 * 4 * K * K, rel=1e-2)


@pytest.mark.parametrize(
    "bounds", [lambda i: (0, i + 1), lambda i: (i, 8), lambda i: (8 * i // 9, 8 - i // 2)]
)
def test_rounds_that_depend_on_the_counter_of_an_outer_loop(bounds):
    """Causal blocks: every inner round reads a row of `xs` and adds it to a sum of the same size."""

    def sums(xs):
        add = lambda j, total: total + jnp.sin(xs[j])  # noqa: E731
        outer = lambda _, i: (None, jax.lax.fori_loop(*bounds(i), add, jnp.zeros(64 * K)))  # noqa: E731
        return jax.lax.scan(outer, None, jnp.arange(8))[1]

    rounds = sum(max(high - low, 0) for low, high in map(bounds, range(8)))
    row = 4 * 64 * K
    # Besides, every outer round makes a sum of zeros and copies it to the results, which start as zeros.
    assert count(sums, (8, 64 * K)) == pytest.approx(row * (3 * rounds + 4 * 8), rel=0.02)


HEADER = "HloModule m, is_scheduled=true\n\n"
LOOP = (
    HEADER
    + """%fused (p0: f32[2,1024,64], p1: s32[], p2: f32[2,1024,64]) -> f32[2,1024,64] {
  %p0 = f32[2,1024,64]{1,2,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,1024,64]{1,2,0:T(8,128)} dynamic-slice(%p0, %p1, %zero, /*index=3*/%zero)
  %sine = f32[1,1024,64]{1,2,0:T(8,128)} sine(%slice)
  %p2 = f32[2,1024,64]{1,2,0:T(8,128)} parameter(2)
  ROOT %update = f32[2,1024,64]{1,2,0:T(8,128)} dynamic-update-slice(%p2, %sine, %p1, %zero, %zero)
}

%body (arg: (s32[], f32[2,1024,64], f32[2,1024,64])) -> (s32[], f32[2,1024,64], f32[2,1024,64]) {
  %arg = (s32[]{:T(128)S(6)}, f32[2,1024,64]{1,2,0:T(8,128)}, f32[2,1024,64]{1,2,0:T(8,128)SPACE}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%arg), index=0
  %xs = f32[2,1024,64]{1,2,0:T(8,128)} get-tuple-element(%arg), index=1
  %ys = f32[2,1024,64]{1,2,0:T(8,128)SPACE} get-tuple-element(%arg), index=2
  %fusion = f32[2,1024,64]{1,2,0:T(8,128)SPACE} fusion(%xs, %i, %ys), kind=kLoop, calls=%fused
  %one = s32[]{:T(128)S(6)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  ROOT %tuple = (s32[], f32[2,1024,64], f32[2,1024,64]) tuple(%next, %xs, %fusion)
}

%condition (arg.1: (s32[], f32[2,1024,64], f32[2,1024,64])) -> pred[] {
  %arg.1 = (s32[]{:T(128)S(6)}, f32[2,1024,64], f32[2,1024,64]) parameter(0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%arg.1), index=0
  %limit = s32[]{:T(128)S(6)} constant(2)
  ROOT %lt = pred[]{:T(512)S(6)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (xs.1: f32[2,1024,64], ys.1: f32[2,1024,64]) -> f32[2,1024,64] {
  %xs.1 = f32[2,1024,64]{1,2,0:T(8,128)} parameter(0)
  %ys.1 = f32[2,1024,64]{1,2,0:T(8,128)SPACE} parameter(1)
  %start = s32[]{:T(128)S(6)} constant(0)
  %carry = (s32[], f32[2,1024,64], f32[2,1024,64]) tuple(%start, %xs.1, %ys.1)
  %while = (s32[], f32[2,1024,64], f32[2,1024,64]) while(%carry), condition=%condition, body=%bodyCONFIG
  ROOT %out = f32[2,1024,64]{1,2,0:T(8,128)SPACE} get-tuple-element(%while), index=2
}
"""
)


def loop(space="", config=""):
    return LOOP.replace("SPACE", space).replace("CONFIG", config)


def test_updates_in_place_and_the_trip_count():
    size = 4 * 2 * 1024 * 64
    assert hbm_bytes(loop()) == 2 * size, "every slice is read once and written once"
    config = ', backend_config={"known_trip_count":{"n":"6"},"other":1}'
    assert hbm_bytes(loop(config=config)) == 3 * 2 * size, "XLA's note comes before the comparison"
    counted = loop().replace("one = s32[]{:T(128)S(6)} constant(1)", "one = s32[]{:T(128)S(6)} constant(2)")
    assert hbm_bytes(counted) == size, "by twos it runs once"
    with pytest.raises(ValueError, match="rounds of while depends on data"):
        hbm_bytes(loop().replace("constant(2)", "custom-call()"))


def test_on_chip_memory_is_free():
    assert hbm_bytes(loop(space="S(1)")) == 4 * 2 * 1024 * 64, "only the reads remain"


def entry(*lines):
    return (
        HEADER + "ENTRY %main (x: f32[8]) -> f32[8] {\n" + "\n".join(f"  {line}" for line in lines) + "\n}\n"
    )


def test_layouts_are_padded_to_their_tiles():
    for layout, size in {
        "{1,0:T(8,128)}": 4 * 16 * 128,
        "{0,1:T(8,128)}": 4 * 72 * 128,
        "{1,0:T(2,128)}": 4 * 10 * 128,
        "{1,0}": 4 * 10 * 65,
        "": 4 * 10 * 65,
    }.items():
        program = entry(f"%x = f32[10,65]{layout} parameter(0)", f"ROOT %y = f32[10,65]{layout} negate(%x)")
        assert hbm_bytes(program) == 2 * size, layout
    packed = entry("%x = bf16[10,65]{1,0:T(8,128)(2,1)} parameter(0)", "ROOT %y = pred[3]{0} compare(%x, %x)")
    assert hbm_bytes(packed) == 2 * 2 * 16 * 128 + 3


def test_asynchronous_copies_count_once_where_they_touch_hbm():
    program = entry(
        "%x = f32[1024]{0:T(1024)} parameter(0)",
        "%start = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%x)",
        "%near = f32[1024]{0:T(1024)S(1)} copy-done(%start)",
        "%part = ((f32[1024]{0:T(1024)}), f32[256]{0:T(256)S(1)}, u32[]{:S(2)}) slice-start(%x), slice={[0:256]}",
        "%slice = f32[256]{0:T(256)S(1)} slice-done(%part)",
        "ROOT %y = f32[1024]{0:T(1024)} add(%near, %near)",
    )
    assert hbm_bytes(program) == 4 * (1024 + 256 + 1024)


def test_a_custom_call_counts_operands_and_results():
    program = entry(
        "%x = bf16[1024]{0} parameter(0)",
        '%made = bf16[4096]{0} custom-call(), custom_call_target="AllocateBuffer"',
        'ROOT %y = (bf16[1024]{0}, f32[16]{0}) custom-call(%x, %made), custom_call_target="tpu_custom_call"',
    )
    assert hbm_bytes(program) == 2 * 1024 + 2 * 4096 + 2 * 1024 + 4 * 16


def test_fusions_inside_fusions():
    """A matrix product of a TPU: its operands pass through fusions that only rename them."""
    fused = """%renamed (a: bf16[256,128]) -> bf16[256,128] {
  %a = bf16[256,128]{1,0} parameter(0)
  ROOT %same = bf16[256,128]{1,0} bitcast(%a)
}

%part (b: bf16[512,128], i: s32[]) -> bf16[128,128] {
  %b = bf16[512,128]{1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  ROOT %slice = bf16[128,128]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={128,128}
}

%product (x.1: bf16[256,128], y.1: bf16[512,128], i.1: s32[]) -> bf16[256,128] {
  %x.1 = bf16[256,128]{1,0} parameter(0)
  %y.1 = bf16[512,128]{1,0} parameter(1)
  %i.1 = s32[]{:S(6)} parameter(2)
  %left = bf16[256,128]{1,0} fusion(%x.1), kind=kLoop, calls=%renamed
  %right = bf16[128,128]{1,0} fusion(%y.1, %i.1), kind=kLoop, calls=%part
  ROOT %dot = bf16[256,128]{1,0} convolution(%left, %right), dim_labels=bf_io->bf
}

"""
    program = entry(
        "%x = bf16[256,128]{1,0} parameter(0)",
        "%y = bf16[512,128]{1,0} parameter(1)",
        "%n = s32[]{:S(6)} parameter(2)",
        "ROOT %out = bf16[256,128]{1,0} fusion(%x, %y, %n), kind=kOutput, calls=%product",
    )
    assert hbm_bytes(program.replace(HEADER, HEADER + fused)) == 2 * (256 + 128 + 256) * 128


def test_the_dearest_branch_counts():
    def choose(which, x):
        return jax.lax.cond(which[0] > 0, lambda x: jnp.sin(x @ x), lambda x: x, x)

    size = 4 * 128 * 128
    assert 2 * size <= count(choose, (1,), (128, 128)) <= 8 * size
