"""Optimised HLO text, parsed: computations, their instructions, and the bytes of each result."""

import functools
import math
import re
from typing import NamedTuple

NAME = r"%?([\w.\-]+)"
_BITS = {"pred": 8, "token": 0, "opaque": 0}  # the other names of types have their number of bits
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")


class Buffer(NamedTuple):
    """One array: its type, shape, bytes with padding, and whether it lies in HBM."""

    kind: str
    shape: tuple[int, ...]
    size: int
    in_hbm: bool

    @property
    def unpadded(self) -> int:
        """Bytes without padding."""
        return math.ceil(math.prod(self.shape) * _bits(self.kind) / 8)


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    buffers: tuple[Buffer, ...]  # of the result, which may be a tuple
    opcode: str
    operands: tuple[str, ...]
    text: str  # operands and attributes as written
    is_root: bool
    number: int  # of a parameter, or of the element of a tuple; else -1

    @property
    def results(self) -> tuple[Buffer, ...]:
        """What it computes: of the buffers of an instruction that starts, those that its end gives."""
        kind = self.opcode.removesuffix("-start")
        if kind in (self.opcode, "all-reduce"):
            return self.buffers
        # (result, operand, context) for a copy, ((operands), results, context) for others.
        first = 0 if kind == "copy" else len(self.operands)
        return self.buffers[first:][: len(self.operands) if kind in COLLECTIVES else 1]

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(buffer.size for buffer in self.buffers)

    @property
    def hbm(self) -> int:
        """Bytes of the result that lie in HBM."""
        return sum(buffer.size for buffer in self.buffers if buffer.in_hbm)

    @property
    def trip_count(self) -> int | None:
        """Rounds of a loop if XLA notes them."""
        noted = self.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        return int(noted) if noted else None

    def attribute(self, pattern: str) -> str:
        """The first group of `pattern` in the attributes, "" if it does not occur."""
        found = re.search(pattern, self.text)
        return found[1] if found else ""


class Computation(dict[str, Instruction]):
    """The instructions of one computation by name."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(instruction for instruction in self.values() if instruction.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Names of the parameters by number."""
        return {i.number: i.name for i in self.values() if i.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read the result of each."""
        found: dict[str, list[Instruction]] = {name: [] for name in self}
        for instruction in self.values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found

    @functools.cached_property
    def collective(self) -> str:
        """What a TPU's fusion does of a collective that it names: all, start, done; "" if it runs beside it."""
        if self.name.startswith("all-reduce-scatter"):
            return "all"
        parts = (i.attribute(r'custom_call_target="AsyncCollective(\w+)"') for i in self.values())
        return next(filter(None, parts), "").lower()


class Program:
    """The computations of one HLO text.

    Args:
        hlo: `compiled.as_text()`.
    """

    def __init__(self, hlo: str):
        self.computations: dict[str, Computation] = {}
        entry, current = "", Computation("")
        for line in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
            if header := _HEADER.match(line):
                current = self.computations[header[2]] = Computation(header[2])
                entry = header[2] if header[1] else entry
            elif instruction := _parse(line):
                current[instruction.name] = instruction
        self.entry = self.computations[entry]

    def named(self, instruction: Instruction, attribute: str) -> Computation:
        """The computation that an instruction names in an attribute, a pattern such as `body` or `calls|to_apply`."""
        return self.computations[instruction.attribute(f"(?:{attribute})={NAME}")]


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
    pattern = {"parameter": r"(\d+)", "get-tuple-element": r".*?index=(\d+)"}.get(opcode)
    number = re.match(pattern, text) if pattern else None
    return Instruction(
        found[2], buffers, opcode, tuple(names), text, bool(found[1]), int(number[1]) if number else -1
    )


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
    shape = physical = [int(size.lstrip("<=")) for size in sizes.split(",") if size]
    layout = layout or ""
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if shape and tile and order:
        physical = [shape[int(axis)] for axis in order.split(",")]  # minor first
        for i, size in enumerate(reversed([int(x) for x in tile[1].split(",")])):
            if i < len(physical):
                physical[i] = -(-physical[i] // size) * size
    return Buffer(kind, tuple(shape), math.ceil(math.prod(physical) * _bits(kind) / 8), "S(" not in layout)


def _bits(kind: str) -> int:
    return _BITS[kind] if kind in _BITS else int(re.findall(r"\d+", kind)[0])
