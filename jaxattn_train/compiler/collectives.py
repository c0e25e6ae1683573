"""Exchanges of data between devices, counted in the optimised HLO text of a program."""

import re
from collections import Counter

from jaxattn_train.compiler.hlo import COLLECTIVES, Computation, Instruction, Program
from jaxattn_train.compiler.traffic import Count

# A matrix product with a gathered factor or a scattered result becomes a loop that passes one part on a round.
_RING = r"windowed_dot_general_body_(ag|rs)"
_RINGS = {"ag": "all-gather as a ring", "rs": "reduce-scatter as a ring"}
_SAME = ("get-tuple-element", "bitcast", "copy", "copy-start", "copy-done")


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """How often one run of a compiled program exchanges data between devices, by kind: (times, bytes received).

    Bytes are what a device receives, without padding: of an all-gather the parts of the others, of a reduce-scatter
    theirs of its own part, of an all-reduce both (a little less than twice the array). The compiler writes some
    all-gathers and reduce-scatters as collective-permutes around a ring, in a loop that computes with the parts;
    one such loop counts once.

    Args:
        hlo: `compiled.as_text()`.

    Raises:
        ValueError: the number of rounds of a loop depends on data.

    Examples:
        >>> collectives('''ENTRY %main (x: f32[4]) -> f32[4] {
        ...   %x = f32[4]{0} parameter(0)
        ...   ROOT %sum = f32[4]{0} all-reduce(%x), to_apply=%add
        ... }''')
        {'all-reduce': (1, 32)}
    """
    count = Count(hlo)
    times, sizes = Counter[str](), Counter[str]()
    for instruction, computation, rounds in count.instructions():
        ring = _loop_kind(count.program, instruction)
        this, computation = _started(count.program, instruction, computation)
        kind = this.opcode.removesuffix("-start")
        if ring:
            times[ring] += rounds
        elif kind in COLLECTIVES:
            received = _received(kind, this, computation)
            if kind == "collective-permute" and (ring := _ring(count.program, this, computation)):
                kind, new = ring, 0
            elif computation.collective == "all":
                kind, new, received = "reduce-scatter", rounds, received // 2
            else:
                new = rounds
            times[kind] += new
            sizes[kind] += rounds * received
    return {kind: (times[kind], sizes[kind]) for kind in times}


def _started(
    program: Program, this: Instruction, computation: Computation
) -> tuple[Instruction, Computation]:
    """The collective that a fusion contains or starts, in its computation; other instructions as they are."""
    if this.opcode == "fusion":
        fused = program.named(this, "calls")
        if fused.collective in ("all", "start"):
            return next((i for i in fused.values() if i.opcode in COLLECTIVES), this), fused
    return this, computation


def _received(kind: str, this: Instruction, computation: Computation) -> int:
    """Bytes from other devices."""
    result = sum(buffer.unpadded for buffer in this.results)
    operand = sum(buffer.unpadded for name in this.operands for buffer in computation[name].buffers)
    return {"all-gather": result - operand, "reduce-scatter": operand - result, "all-reduce": 2 * result}.get(
        kind, result
    )


def _ring(program: Program, this: Instruction, computation: Computation) -> str:
    """Of what ring a collective-permute is a part: in the loop, or of its result; "" for none."""
    if found := re.search(_RING, computation.name):
        return _RINGS[found[1]]
    while this.operands and this.opcode in ("collective-permute", "collective-permute-start", *_SAME):
        this = computation[this.operands[0]]
    return _loop_kind(program, this)


def _loop_kind(program: Program, this: Instruction) -> str:
    found = re.search(_RING, program.named(this, "body").name) if this.opcode == "while" else None
    return _RINGS[found[1]] if found else ""
