"""Every check over every kernel of the table."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxattn
from jaxattn.testing import (
    assert_causal,
    assert_close_to_reference,
    assert_decode_matches,
    assert_matches_reference,
    assert_padding_invariant,
)
from tests.common.harness import (
    afresh,
    arrays,
    axes,
    compiled,
    decoding,
    first_tier,
    naively,
    output_and_gradients,
    with_gradients,
)
from tests.common.table import KERNELS, LEAKING, Sizes

UNGROUPED = Sizes(heads=2, kv_heads=2)
every_kernel = pytest.mark.parametrize("row", KERNELS, ids=lambda row: row.name)
# One row for each way of computing: products in memory, loops over blocks, gates, chunks of a state, trees.
KINDS = "softmax-xla", "softmax-blockwise", "energy-running", "features", "tree"
one_row_a_kind = first_tier(KERNELS, *KINDS)
# Where what is checked lies around the kernel: one that loops, one with parameters, one with a small state.
around = first_tier(KERNELS, "softmax-blockwise", "energy-running", "features")
# Where more than these is wanted at once: what has a state of its own.
each_own_state = first_tier(KERNELS, *KINDS, "energy-prefix", "lags", "linear-decay")


def whole(row, prepare=lambda call: call):
    """The causal kernel as a function of its arrays alone."""
    call = prepare(compiled(row))

    def fn(query, key, value, key_bias, *own):
        return call(query, key, value, key_bias, *own, None, None)

    return fn


def on_tokens(call, mask):
    """The kernel with `mask`, its output at padding set to 0: what it is there is nobody's business."""
    return lambda *args: jnp.where(mask[..., None, None], call(*args, mask, None), 0.0)


@each_own_state
@pytest.mark.usefixtures("optimised")
def test_causal(row):
    assert_causal(whole(row, afresh), arrays(row, Sizes()), axis=axes(row))


@first_tier([row for row in KERNELS if row.long], "softmax-blockwise", "features")
@pytest.mark.usefixtures("optimised")
def test_several_blocks(row):
    """Causal inside and between blocks, and the same as in one piece."""
    args = arrays(row, Sizes(batch=1, length=row.long, heads=1, kv_heads=1))
    call = whole(row, afresh)
    assert_causal(call, args, axis=axes(row), positions=[7, row.long // 2 - 1, row.long // 2, row.long - 2])
    assert_matches_reference(call, lambda *a: naively(row)(*a, None, None), args, rtol=1e-3)


def test_statistics_of_the_whole_sequence_are_found_out():
    with pytest.raises(AssertionError, match=r"not causal: .* argument 4"):
        assert_causal(whole(LEAKING), arrays(LEAKING, Sizes()), axis=axes(LEAKING))
    with pytest.raises(AssertionError, match=r"not causal: .* gradient of .* argument 4"):
        # Were the outputs not looked at, the gradients alone would tell.
        assert_causal(whole(LEAKING), arrays(LEAKING, Sizes()), axis=axes(LEAKING), atol=np.inf)


@one_row_a_kind
def test_padding_reaches_nothing(row):
    call = compiled(row, row.only_causal)  # a causal mask alone would hide padding on the right

    def padded(query, *rest):
        *rest, mask = rest
        # Nobody attends from padding; the kernels guard what is attended to.
        return call(jnp.where(mask[..., None, None], query, 0), *rest, mask, None)

    sizes = Sizes() if row.only_causal else UNGROUPED
    assert_padding_invariant(padded, arrays(row, sizes), axis=axes(row), rtol=1e-4)


@every_kernel
def test_reference(row):
    """Outputs and gradients, with padding, causal with grouped queries."""
    matches_reference(row, Sizes(), is_causal=True)


@around
def test_reference_without_a_mask(row):
    """The same for full attention, without groups."""
    if row.only_causal:
        with pytest.raises(ValueError, match="is_causal"):
            row.call(*arrays(row, UNGROUPED), mask=None, segment_ids=None, is_causal=False)
        return
    matches_reference(row, UNGROUPED, is_causal=False)


def matches_reference(row, sizes, *, is_causal):
    mask = jnp.arange(sizes.length) < jnp.array([[sizes.length], [sizes.length - 4]])
    assert_matches_reference(
        on_tokens(compiled(row, is_causal), mask),
        on_tokens(naively(row, is_causal), mask),
        arrays(row, sizes),
        rtol=1e-4,
        atol=2e-5,
    )


@first_tier([row for row in KERNELS if row.segments], *KINDS)
def test_packed_segments(row):
    """Three sequences in one row neither see nor count each other."""
    args = arrays(row, Sizes())
    ids = jnp.broadcast_to(jnp.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2]), (2, 10))
    assert_matches_reference(
        lambda *a: compiled(row)(*a, None, ids),
        lambda *a: naively(row)(*a, None, ids),
        args,
        check_gradients=False,
    )


@around
def test_bfloat16(row):
    args = arrays(row, Sizes(), "bfloat16")
    assert whole(row)(*args).dtype == jnp.bfloat16
    reference = lambda *a: naively(row)(*a, None, None)  # noqa: E731
    assert_close_to_reference(whole(row), reference, args, max_error=2e-2, check_gradients=True)


@around
def test_unbatched(row):
    args = arrays(row, Sizes())
    single = [x if a is None else x[0] for x, a in zip(args, axes(row), strict=True)]
    np.testing.assert_allclose(whole(row)(*single), whole(row)(*args)[0], atol=1e-6)


@around
def test_eager_equals_jit(row):
    args = arrays(row, Sizes())
    eager = row.call(*args, mask=None, segment_ids=None, is_causal=True)
    np.testing.assert_allclose(eager, whole(row)(*args), atol=1e-6)


@around
def test_vmap(row):
    args = arrays(row, Sizes())
    # Over the batch, whose members are then unbatched; parameters are shared.
    mapped = jax.vmap(whole(row), in_axes=tuple(None if a is None else 0 for a in axes(row)))(*args)
    np.testing.assert_allclose(mapped, whole(row)(*args), atol=1e-6)


@each_own_state
@pytest.mark.parametrize("prefill", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_decode(row, prefill):
    sizes = Sizes()
    assert_decode_matches(
        whole(row),
        lambda: row.init(sizes, jnp.float32),
        stepper(row),
        arrays(row, sizes),
        axis=axes(row),
        prefill=prefill,
    )


@each_own_state
def test_ragged_batch(row):
    """Sequences of any lengths, padded with NaN, one of them replaced on the way: each as if it were alone."""
    args, named = arrays(row, Sizes()), list(axes(row))
    expected = whole(row)(*args)

    def step(state, *parts):
        """Feeds every sequence b the tokens of its part (source, start, stop), at most 4."""

        def cut(x, axis):
            if axis is None:
                return x
            rows = [x[source, start:stop] for source, start, stop in parts]
            pad = [[(0, 4 - len(r)), *[(0, 0)] * (r.ndim - 1)] for r in rows]
            return jnp.stack([jnp.pad(r, p, constant_values=jnp.nan) for r, p in zip(rows, pad, strict=True)])

        lengths = jnp.array([stop - start for _, start, stop in parts])
        state, out = stepper(row)(state, *map(cut, args, named), query_seq_lengths=lengths)
        for got, (source, start, stop) in zip(out, parts, strict=True):
            np.testing.assert_allclose(got[: stop - start], expected[source, start:stop], atol=1e-5)
            assert (got[stop - start :] == 0).all()
        return state

    state = row.init(Sizes(), jnp.float32)
    for parts in [((0, 0, 4), (1, 0, 2)), ((0, 4, 8), (1, 2, 2)), ((0, 8, 9), (1, 2, 5))]:
        state = step(state, *parts)
    other = step(row.init(Sizes(batch=1), jnp.float32), (0, 0, 3))
    state = step(jaxattn.replace_rows(state, jnp.array([1]), other), (0, 9, 10), (0, 3, 7))


@functools.lru_cache
def stepper(row):
    return jax.jit(row.step)


@one_row_a_kind
def test_rows_without_a_key_give_zero(row):
    """A sequence that is all padding: outputs 0, gradients finite, and the neighbour in the batch unmoved."""
    args = arrays(row, Sizes())
    mask = jnp.array([[True] * 10, [False] * 10])
    out, vjp = jax.vjp(lambda *a: compiled(row)(*a, mask, None), *args)
    assert (out[1] == 0).all()
    np.testing.assert_allclose(out[0], whole(row)(*args)[0], atol=1e-6)
    assert all(jnp.isfinite(g).all() for g in vjp(jnp.ones_like(out)))


@first_tier([row for row in KERNELS if row.shifts], *KINDS)
def test_first_rows_without_a_key_give_zero(row):
    """Left padding under a causal mask: the first queries have no key, the others ignore it."""
    args = arrays(row, Sizes())
    mask = jnp.broadcast_to(jnp.arange(10) >= 4, (2, 10))
    out = compiled(row)(*args, mask, None)
    assert (out[:, :4] == 0).all()
    np.testing.assert_allclose(
        out[:, 4:],
        whole(row)(*(x if a is None else x[:, 4:] for x, a in zip(args, axes(row), strict=True))),
        atol=2e-6,
    )


@one_row_a_kind
def test_huge_scores(row):
    """Scores of 1e5 and gates that are shut: the weights become one-hot, nothing becomes NaN."""
    query, key, value, key_bias, *own = arrays(row, Sizes())
    # Lower bits cleared, so that the scores are exact in float32 too and the largest is the same.
    coarse = [jnp.round(x * 8) * 64 for x in (query, key)]
    own = [100 * x if name != "lag_logits" else x for name, x in zip(row.own, own, strict=True)]
    args = (*coarse, value, 30 * key_bias, *own)
    reference = lambda *a: naively(row)(*a, None, None)  # noqa: E731
    if row.sharp:
        assert_close_to_reference(whole(row), reference, args, max_error=1e-2)
    out, vjp = jax.vjp(whole(row), *args)
    assert jnp.isfinite(out).all()
    assert all(jnp.isfinite(g).all() for g in vjp(jnp.ones_like(out)))


@one_row_a_kind
def test_float32_stays_float32_under_x64(row):
    args = arrays(row, Sizes())
    expected = whole(row)(*args)
    with jax.enable_x64(True):
        out = whole(row)(*args)
        prompt = (x if a is None else x[:, :4] for x, a in zip(args, axes(row), strict=True))
        before = row.init(Sizes(), jnp.float32)
        state, first = stepper(row)(before, *prompt)
    assert out.dtype == first.dtype == jnp.float32
    chex.assert_trees_all_equal_dtypes(state, before)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(first, expected[:, :4], atol=1e-5)


@one_row_a_kind
def test_empty_arrays(row):
    for sizes in (Sizes(batch=0), Sizes(length=0)):
        if sizes.length or row.shifts:  # there is no tree over no tokens
            args = arrays(row, sizes)
            out, vjp = jax.vjp(
                functools.partial(row.call, mask=None, segment_ids=None, is_causal=True), *args
            )
            assert out.shape == args[0].shape and [g.shape for g in vjp(out)] == [x.shape for x in args]


@one_row_a_kind
def test_reverse_over_reverse(row):
    """Second derivatives, where they exist, are those of forward over reverse."""
    query, *rest = arrays(row, Sizes())

    def slope(query):
        return jax.grad(lambda query: jnp.sin(whole(row)(query, *rest)).sum())(query)

    direction = rest[0][:, :, :1]
    if row.name == "softmax-blockwise":
        with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
            jax.grad(lambda query: (slope(query) * direction).sum())(query)
        return
    reverse = jax.jit(jax.grad(lambda query: (slope(query) * direction).sum()))(query)
    forward = jax.jit(lambda query: jax.jvp(slope, (query,), (direction + 0 * query,))[1])(query)
    np.testing.assert_allclose(reverse, forward, rtol=1e-3, atol=1e-4)


@around
def test_shard_map(row):
    """Outputs and gradients over a batch cut among devices, parameters replicated, with the default checks."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = tuple(P() if axis is None else P("batch") for axis in axes(row))
    mapped = jax.shard_map(with_gradients(row), mesh=mesh, in_specs=specs, out_specs=(P("batch"), specs))
    got = jax.jit(mapped)(*arrays(row, Sizes()))
    chex.assert_trees_all_close(got, output_and_gradients(row), rtol=1e-4, atol=1e-5)


@around
def test_steps_in_shard_map(row):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = tuple(P() if axis is None else P("batch") for axis in axes(row))
    mapped = jax.shard_map(decoding(row, Sizes(batch=1)), mesh=mesh, in_specs=specs, out_specs=P("batch"))
    args = arrays(row, Sizes())
    np.testing.assert_allclose(jax.jit(mapped)(*args), whole(row)(*args)[:, :5], atol=1e-5)


@around
def test_explicit_mesh(row):
    """Batch and heads sharded over a mesh of explicit axes: outputs, gradients and steps are those of one device."""
    mesh = jax.make_mesh((2, 2), ("batch", "heads"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    args = arrays(row, Sizes())
    specs = [P() if axis is None else P("batch", None, "heads") for axis in axes(row)]
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, spec) for x, spec in zip(args, specs, strict=True)]
        run = jax.jit(lambda *args: (with_gradients(row)(*args), decoding(row, Sizes())(*args)))
        (out, grads), steps = run(*placed)
    assert out.sharding.spec == steps.sharding.spec == P("batch", None, "heads", None)
    chex.assert_trees_all_close(jax.device_get((out, grads)), output_and_gradients(row), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steps, whole(row)(*args)[:, :5], atol=1e-5)


@first_tier(KERNELS, "features")
def test_work_divides_among_devices(row):
    """Under jit, arrays cut by batch and heads: each device has its share of the work, and moves no tokens."""
    mesh = jax.make_mesh((2, 2), ("batch", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def compiled_for(spec):
        shapes = [
            jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, P() if axis is None else spec)
            )
            for x, axis in zip(arrays(row, UNGROUPED), axes(row), strict=True)
        ]
        return jax.jit(with_gradients(row)).lower(*shapes).compile()

    on_each, shared = compiled_for(P()), compiled_for(P("batch", None, "heads"))
    assert shared.cost_analysis()["flops"] < 0.3 * on_each.cost_analysis()["flops"]
    # Gradients of parameters, which all devices have, are summed.
    moved = re.findall(r"(all-gather|all-to-all|reduce-scatter|collective-permute)[\w-]*\(", shared.as_text())
    assert not moved
    args = arrays(row, UNGROUPED)
    out, _ = shared(*jax.device_put(args, shared.input_shardings[0]))
    np.testing.assert_allclose(out, whole(row)(*args), atol=1e-5)


def exported(row, function, batch, length):
    """Exported once for all platforms, with these sizes."""
    shapes = [
        x if axis is None else jax.ShapeDtypeStruct((batch, length, *x.shape[2:]), x.dtype)
        for x, axis in zip(arrays(row, Sizes()), axes(row), strict=True)
    ]
    return jax.export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(*shapes)


@one_row_a_kind
@pytest.mark.usefixtures("no_typecheck")  # which cannot compare symbols
def test_export(row):
    """With a symbol for the batch; here the exported function gives what the function itself gives."""
    (batch,) = jax.export.symbolic_shape("batch")
    found = exported(row, with_gradients(row), batch, 10).call(*arrays(row, Sizes()))
    chex.assert_trees_all_close(found, output_and_gradients(row), rtol=1e-4, atol=1e-5)


@first_tier([row for row in KERNELS if row.any_length], "softmax-xla", "energy-running", "linear")
@pytest.mark.usefixtures("no_typecheck")
def test_export_for_any_length(row):
    call = functools.partial(row.call, mask=None, segment_ids=None, is_causal=True)
    (length,) = jax.export.symbolic_shape("length")
    args = arrays(row, Sizes())
    np.testing.assert_allclose(exported(row, call, 2, length).call(*args), whole(row)(*args), atol=1e-5)


@around
def test_exported_steps_are_saved(row):
    pytest.importorskip("flatbuffers")
    args = tuple(
        x if axis is None else x[:, :4] for x, axis in zip(arrays(row, Sizes()), axes(row), strict=True)
    )
    before = row.init(Sizes(), jnp.float32)
    saved = jax.export.export(stepper(row))(before, *args).serialize()
    loaded = jax.export.deserialize(saved)
    assert loaded.in_tree == jax.tree.structure(((before, *args), {}))
    assert loaded.out_tree == jax.tree.structure((before, args[0]))
