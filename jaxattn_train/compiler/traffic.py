"""HBM bytes that a compiled program moves, counted in its optimised HLO text.

XLA's own count (`compiled.cost_analysis()["bytes accessed"]`) takes the body of a loop once, and counts an array that
every round slices in full. Here the body counts as often as it runs, a slice as the slice, an update in place as the
update, and an array in on-chip memory (VMEM on a TPU) not at all. Sizes are those of the layout: an axis of 64 tiled
by 128 takes 128.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # the other names of types have their number of bits
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAME = r"%?([\w.\-]+)"
# These name buffers and move nothing.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "partition-id",
)
_SLICES = ("slice", "dynamic-slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # opcode -> which operand is the update


class Buffer(NamedTuple):
    """One array: its bytes with padding, and whether it lies in HBM."""

    size: int
    in_hbm: bool


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    buffers: tuple[Buffer, ...]  # of the result, which may be a tuple
    opcode: str
    operands: tuple[str, ...]
    text: str  # operands and attributes as written
    is_root: bool

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(buffer.size for buffer in self.buffers)

    @property
    def hbm(self) -> int:
        """Bytes of the result that lie in HBM."""
        return sum(buffer.size for buffer in self.buffers if buffer.in_hbm)

    def attribute(self, pattern: str) -> str:
        """The first group of `pattern` in the attributes, "" if it does not occur."""
        found = re.search(pattern, self.text)
        return found[1] if found else ""


class Computation(dict[str, Instruction]):
    """The instructions of one computation by name."""

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(instruction for instruction in self.values() if instruction.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Names of the parameters by number."""
        return {int(i.attribute(r"^(\d+)")): i.name for i in self.values() if i.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read the result of each."""
        found: dict[str, list[Instruction]] = {name: [] for name in self}
        for instruction in self.values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found


def hbm_bytes(hlo: str) -> int:
    """Bytes read from and written to HBM by one run of a compiled program.

    Every instruction reads its operands and writes its result; a fusion reads of an operand what the instructions in
    it use. Of a conditional's branches the most expensive counts. A custom call (a Pallas kernel, a cuDNN graph)
    counts every operand and result once, which is a lower bound.

    Args:
        hlo: `compiled.as_text()`.

    Raises:
        ValueError: the number of rounds of a loop is not a constant.

    Examples:
        >>> import jax
        >>> x = jax.ShapeDtypeStruct((1000,), "float32")
        >>> hbm_bytes(jax.jit(lambda x: 2 * x + 1).lower(x).compile().as_text())
        8000
    """
    program = _Program(hlo)
    return program.cost(program.entry)


_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """How often one run of a compiled program exchanges data between devices, by kind: (times, bytes of results).

    Args:
        hlo: `compiled.as_text()`.

    Raises:
        ValueError: the number of rounds of a loop is not a constant.

    Examples:
        >>> collectives('''ENTRY %main (x: f32[4]) -> f32[4] {
        ...   %x = f32[4]{0} parameter(0)
        ...   ROOT %sum = f32[4]{0} all-reduce(%x), to_apply=%add
        ... }''')
        {'all-reduce': (1, 16)}
    """
    program, found = _Program(hlo), dict[str, tuple[int, int]]()
    for instruction, rounds in program.executed(program.entry):
        kind = instruction.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            # What starts gives (operands, results), and perhaps more.
            started = instruction.opcode.endswith("-start") and len(instruction.buffers) > 1
            results = instruction.buffers[len(instruction.operands) :] if started else instruction.buffers
            times, size = found.get(kind, (0, 0))
            found[kind] = (
                times + rounds,
                size + rounds * sum(buffer.size for buffer in results[: len(instruction.operands)]),
            )
    return found


class _Program:
    """The computations of one HLO text, and what each costs."""

    def __init__(self, hlo: str):
        self.computations: dict[str, Computation] = {}
        self.costs: dict[str, int] = {}
        self.entry = ""
        current = Computation()
        for line in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
            if header := _HEADER.match(line):
                current = self.computations[header[2]] = Computation()
                self.entry = header[2] if header[1] else self.entry
            elif instruction := _parse(line):
                current[instruction.name] = instruction

    def executed(self, name: str, rounds: int = 1) -> Iterator[tuple[Instruction, int]]:
        """The instructions of a computation and of those it calls, each with how often it runs."""
        computation = self.computations[name]
        for instruction in computation.values():
            yield instruction, rounds
            times = rounds * (self._rounds(instruction, computation) if instruction.opcode == "while" else 1)
            if instruction.opcode in ("while", "call", "async-start"):
                yield from self.executed(instruction.attribute(f"(?:body|to_apply|calls)={_NAME}"), times)

    def cost(self, name: str) -> int:
        """Bytes of one run of a computation."""
        if name not in self.costs:
            computation = self.computations[name]
            self.costs[name] = sum(
                self._cost(instruction, computation) for instruction in computation.values()
            )
        return self.costs[name]

    def _cost(self, this: Instruction, computation: Computation) -> int:
        """Bytes of one instruction that is not part of a fusion."""
        opcode, operands = this.opcode, [computation[name] for name in this.operands]
        free = opcode in _FREE or opcode.endswith(("-done", "-update"))
        if free or (opcode == "custom-call" and "AllocateBuffer" in this.text):
            return 0
        if opcode == "while":
            body, condition = this.attribute(f"body={_NAME}"), this.attribute(f"condition={_NAME}")
            rounds = self._rounds(this, computation)
            return rounds * self.cost(body) + (rounds + 1) * self.cost(condition)
        if opcode == "conditional":
            branches = this.attribute(r"branch_computations=\{([^}]*)\}")
            names = re.findall(r"[\w.\-]+", branches) or re.findall(
                f"(?:true|false)_computation={_NAME}", this.text
            )
            return max(map(self.cost, names))
        if opcode in ("call", "async-start"):
            return self.cost(this.attribute(f"(?:to_apply|calls)={_NAME}"))
        if opcode == "fusion":
            fused = self._called(this)
            reads = (self._read(fused, fused.parameters[i], x.size) for i, x in enumerate(operands) if x.hbm)
            return sum(reads) + sum(self._written(fused, fused.root, this.buffers))
        written = this.hbm
        if opcode.endswith("-start"):
            opcode = opcode.removesuffix("-start")
            # The result is (result, operand, context) for a copy, ((operands), result, context) for others.
            result = this.buffers[0 if opcode == "copy" else len(operands)]
            this, written = this._replace(buffers=(result,)), result.size * result.in_hbm
        if opcode in _UPDATES:
            update = operands[_UPDATES[opcode]]
            return update.hbm + update.size * (this.hbm > 0)
        if opcode in _SLICES:
            return min(this.size, operands[0].hbm) + written
        return written + sum(operand.hbm for operand in operands)

    def _called(self, fusion: Instruction) -> Computation:
        return self.computations[fusion.attribute(f"calls={_NAME}")]

    def _read(self, fused: Computation, name: str, whole: int) -> int:
        """Bytes that a fusion reads of an operand of `whole` bytes: all, or the slices that are used."""
        total = 0
        for user in fused.users[name]:
            sliced = user.operands[0] == name and user.operands.count(name) == 1
            if sliced and user.opcode in _SLICES:
                total += user.size
            elif (sliced and user.opcode in _UPDATES) or user.opcode == "bitcast":
                total += self._read(fused, user.name, whole)  # what is not updated stays where it is
            elif user.opcode == "fusion":
                inner = self._called(user)
                places = [inner.parameters[i] for i, operand in enumerate(user.operands) if operand == name]
                # A fusion inside that reads nothing passes the array on to its users.
                inside = sum(self._read(inner, place, whole) for place in places)
                total += inside or self._read(fused, user.name, whole)
            elif user.opcode != "tuple":
                return whole
        return min(total, whole)

    def _written(self, fused: Computation, root: Instruction, buffers: tuple[Buffer, ...]) -> Iterator[int]:
        """Bytes that a fusion writes to each buffer of its result: all, or the update of a parameter in place."""
        if root.opcode == "tuple":
            for operand, buffer in zip(root.operands, buffers, strict=True):
                yield from self._written(fused, fused[operand], (buffer,))
        elif root.opcode == "bitcast":
            yield from self._written(fused, fused[root.operands[0]], buffers)
        elif root.opcode == "fusion":
            inner = self._called(root)
            yield from self._written(inner, inner.root, buffers)
        elif root.opcode in _UPDATES and self._is_parameter(fused, root.operands[0]):
            yield fused[root.operands[_UPDATES[root.opcode]]].size if buffers[0].in_hbm else 0
        else:
            yield from (buffer.size for buffer in buffers if buffer.in_hbm)

    def _is_parameter(self, fused: Computation, name: str) -> bool:
        while fused[name].opcode in ("bitcast", *_UPDATES):
            name = fused[name].operands[0]
        return fused[name].opcode == "parameter"

    def _rounds(self, loop: Instruction, computation: Computation) -> int:
        """The trip count that XLA notes, or the one that follows from a counter that is compared with a constant."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations[loop.attribute(f"condition={_NAME}")]
        compare = condition.root
        counter, limit = (condition[name] for name in compare.operands[:2])
        if compare.opcode == "compare" and "direction=LT" in compare.text and limit.opcode == "constant":
            start = computation[loop.operands[0]]
            index = counter.attribute(r"index=(\d+)")
            if index and start.opcode == "tuple":
                first = computation[start.operands[int(index)]]
                while first.opcode in ("copy", "bitcast"):
                    first = computation[first.operands[0]]
                if first.opcode == "constant":
                    return int(limit.attribute(r"^(-?\d+)")) - int(first.attribute(r"^(-?\d+)"))
        raise ValueError(f"the number of rounds of {loop.name} is not a constant.")


def _parse(line: str) -> Instruction | None:
    found = re.match(r"\s*(ROOT )?%?([\w.\-]+) = (.*)", line)
    if not found:
        return None
    type_length = _closing(found[3], 0) if found[3].startswith("(") else found[3].index(" ")
    result, rest = found[3][:type_length], found[3][type_length:].lstrip()
    opcode, _, text = rest.partition("(")
    operands = text[: _closing("(" + text, 0) - 2]
    names = re.findall(r"%([\w.\-]+)", operands) if opcode not in ("constant", "parameter") else []
    buffers = tuple(_buffer(*array.groups()) for array in _ARRAY.finditer(result))
    return Instruction(found[2], buffers, opcode, tuple(names), text, bool(found[1]))


def _closing(text: str, start: int) -> int:
    """The index behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]!r}.")


def _buffer(kind: str, sizes: str, order: str | None, layout: str | None) -> Buffer:
    """Of an array such as bf16[2,64]{1,0:T(8,128)(2,1)S(1)}; S(n) is memory other than HBM."""
    shape = [int(size.lstrip("<=")) for size in sizes.split(",") if size]
    bits = _BITS[kind] if kind in _BITS else int(re.findall(r"\d+", kind)[0])
    layout = layout or ""
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if shape and tile and order:
        physical = [shape[int(axis)] for axis in order.split(",")]  # minor first
        for i, size in enumerate(reversed([int(x) for x in tile[1].split(",")])):
            if i < len(physical):
                physical[i] = -(-physical[i] // size) * size
        shape = physical
    return Buffer(math.ceil(math.prod(shape) * bits / 8), "S(" not in layout)
