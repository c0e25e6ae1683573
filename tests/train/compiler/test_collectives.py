"""The counter of exchanges between devices, on programs written by hand as the compiler of TPUs writes them."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxattn_train.compiler.collectives import collectives
from jaxattn_train.compiler.traffic import hbm_bytes

# Two products over four devices, one whose result is scattered, both directions around a ring, one whose factor is
# gathered while another runs.
PROGRAM = """HloModule m, is_scheduled=true

%wide.windowed_dot_general_body_rs.1.clone (p: (f32[8,16], f32[8,16], s32[])) -> (f32[8,16], f32[8,16], s32[]) {
  %p = (f32[8,16]{1,0}, f32[8,16]{1,0}, s32[]) parameter(0)
  %a = f32[8,16]{1,0} get-tuple-element(%p), index=0
  %b = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %i = s32[] get-tuple-element(%p), index=2
  %go = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=1
  %gone = f32[8,16]{1,0} collective-permute-done(%go)
  %back = f32[8,16]{1,0} collective-permute(%b), channel_id=2
  ROOT %t = (f32[8,16]{1,0}, f32[8,16]{1,0}, s32[]) tuple(%gone, %back, %i)
}

%condition (q: (f32[8,16], f32[8,16], s32[])) -> pred[] {
  %q = (f32[8,16]{1,0}, f32[8,16]{1,0}, s32[]) parameter(0)
  ROOT %more = pred[] constant(true)
}

%start (s: bf16[16,4]) -> (bf16[16,4], bf16[16,16], u32[]) {
  %s = bf16[16,4]{1,0} parameter(0)
  %gather.1 = bf16[16,16]{1,0} all-gather(%s), channel_id=3, dimensions={1}
  ROOT %c = (bf16[16,4]{1,0}, bf16[16,16]{1,0}, u32[]) custom-call(%gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%meanwhile (s: bf16[16,4], g: bf16[16,16], x: f32[8,16]) -> (f32[8,16], bf16[16,16]) {
  %s = bf16[16,4]{1,0} parameter(0)
  %g = bf16[16,16]{1,0} parameter(1)
  %x = f32[8,16]{1,0} parameter(2)
  %y = f32[8,16]{1,0} negate(%x)
  %gather.2 = bf16[16,16]{1,0} all-gather(%s), channel_id=3, dimensions={1}
  ROOT %t = (f32[8,16]{1,0}, bf16[16,16]{1,0}) tuple(%y, %gather.2)
}

%done (s: bf16[16,4], g: bf16[16,16]) -> bf16[16,16] {
  %s = bf16[16,4]{1,0} parameter(0)
  %g = bf16[16,16]{1,0} parameter(1)
  %gather.3 = bf16[16,16]{1,0} all-gather(%s), channel_id=3, dimensions={1}
  ROOT %c = bf16[16,16]{1,0} custom-call(%s, %g, %gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.2 (x: f32[8,16]) -> f32[2,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %sum = f32[8,16]{1,0} all-reduce(%x), channel_id=5
  %zero = s32[] constant(0)
  ROOT %part = f32[2,16]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={2,16}
}

ENTRY %main (x: f32[8,16], w: bf16[16,4], n: s32[]) -> (f32[8,16], bf16[16,16], f32[2,16], f32[8,16]) {
  %x = f32[8,16]{1,0} parameter(0)
  %w = bf16[16,4]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %before = (f32[8,16]{1,0}, f32[8,16]{1,0}, s32[]) tuple(%x, %x, %n)
  %ring = (f32[8,16]{1,0}, f32[8,16]{1,0}, s32[]) while(%before), condition=%condition, \
body=%wide.windowed_dot_general_body_rs.1.clone, backend_config={"known_trip_count":{"n":"2"}}
  %half = f32[8,16]{1,0} get-tuple-element(%ring), index=0
  %last = f32[8,16]{1,0} collective-permute(%half), channel_id=4
  %begun = (bf16[16,4]{1,0}, bf16[16,16]{1,0}, u32[]) fusion(%w), kind=kCustom, calls=%start
  %w1 = bf16[16,4]{1,0} get-tuple-element(%begun), index=0
  %w2 = bf16[16,16]{1,0} get-tuple-element(%begun), index=1
  %middle = (f32[8,16]{1,0}, bf16[16,16]{1,0}) fusion(%w1, %w2, %last), kind=kLoop, calls=%meanwhile
  %y = f32[8,16]{1,0} get-tuple-element(%middle), index=0
  %w3 = bf16[16,16]{1,0} get-tuple-element(%middle), index=1
  %whole = bf16[16,16]{1,0} fusion(%w1, %w3), kind=kCustom, calls=%done
  %part = f32[2,16]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.2
  %halo = f32[8,16]{1,0} collective-permute(%y), channel_id=6
  ROOT %t = (f32[8,16]{1,0}, bf16[16,16]{1,0}, f32[2,16]{1,0}, f32[8,16]{1,0}) tuple(%y, %whole, %part, %halo)
}
"""


def test_rings_and_collectives_in_fusions_count_as_what_they_are():
    whole, factor = 4 * 8 * 16, 2 * 16 * 16
    assert collectives(PROGRAM) == {
        "reduce-scatter as a ring": (1, (2 * 2 + 1) * whole),
        "all-gather": (1, factor * 3 // 4),
        "reduce-scatter": (1, whole),
        "collective-permute": (1, whole),
    }


def test_a_collective_that_runs_beside_other_work_moves_its_bytes_once():
    """The fusions between start and done read and write what they compute; the collective in them is free."""
    whole, part, factor = 4 * 8 * 16, 2 * 16 * 4, 2 * 16 * 16
    ring, last, halo, scattered = 2 * 2 * 2 * whole, 2 * whole, 2 * whole, whole + whole // 4
    gather, negated = part + factor, 2 * whole
    assert hbm_bytes(PROGRAM) == ring + last + halo + scattered + gather + negated


def test_several_arrays_in_one_exchange_that_starts_and_ends():
    """As the compiler of GPUs combines them: all-reduces give their results alone, all-gathers their operands too."""
    program = """ENTRY %main (x: f32[4], y: f32[8]) -> (f32[4], f32[32]) {
  %x = f32[4]{0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %begun = (f32[4]{0}, f32[8]{0}) all-reduce-start(%x, %y), to_apply=%add
  %sums = (f32[4]{0}, f32[8]{0}) all-reduce-done(%begun)
  %sum = f32[4]{0} get-tuple-element(%sums), index=0
  %sent = ((f32[4]{0}, f32[8]{0}), (f32[16]{0}, f32[32]{0})) all-gather-start(%x, %y), dimensions={0}
  %gathered = (f32[16]{0}, f32[32]{0}) all-gather-done(%sent)
  %whole = f32[32]{0} get-tuple-element(%gathered), index=1
  ROOT %t = (f32[4]{0}, f32[32]{0}) tuple(%sum, %whole)
}
"""
    parts, wholes = 4 * (4 + 8), 4 * (16 + 32)
    assert collectives(program) == {"all-reduce": (1, 2 * parts), "all-gather": (1, wholes - parts)}
    assert hbm_bytes(program) == 2 * parts + parts + wholes


def test_bytes_received_are_those_of_the_other_devices():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    x = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=NamedSharding(mesh, P("x")))

    def exchange(x):
        whole = jax.lax.all_gather(x, "x", tiled=True)
        return jax.lax.psum_scatter(whole, "x", tiled=True), jax.lax.ppermute(x, "x", [(0, 1)])

    run = jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=P("x"), out_specs=P("x")))
    part = 4 * 16 * 8
    assert collectives(run.lower(x).compile().as_text()) == {
        "all-gather": (1, 3 * part),
        "reduce-scatter": (1, 3 * part),
        "collective-permute": (1, part),
    }
