"""Integers of an HLO program that do not depend on its inputs: counters of loops, and what is computed from them."""

import itertools
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxattn_train.compiler.hlo import NAME, Computation, Instruction, Program

# An array of integers or booleans, a tuple of values, or None: not known.
Value = Any
_LARGEST = 2**18  # numbers in an array that is followed
_MOST_ROUNDS = 10**6  # of one loop
_KINDS = {"pred": "bool"} | {
    f"{kind[0]}{bits}": f"{name}{bits}"
    for kind, name in (("s", "int"), ("u", "uint"))
    for bits in (8, 16, 32, 64)
}


def _divide(x: Any, y: Any) -> Any:
    """Rounds towards zero."""
    return (x - np.fmod(x, y)) // y


def _shift_right(x: Any, y: Any) -> Any:
    """Fills with zeros."""
    return x.view(f"u{x.dtype}") >> y.view(f"u{y.dtype}")


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    **{"add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "negate": operator.neg},
    **{"divide": _divide, "remainder": np.fmod, "abs": np.abs, "sign": np.sign},
    **{"maximum": np.maximum, "minimum": np.minimum, "clamp": lambda low, x, high: np.clip(x, low, high)},
    **{"and": operator.and_, "or": operator.or_, "xor": operator.xor, "not": np.invert},
    **{"shift-left": operator.lshift, "shift-right-arithmetic": operator.rshift},
    **{"shift-right-logical": _shift_right, "select": np.where},
}
# These only rename, or change the type.
_RENAMINGS = ("copy", "copy-start", "copy-done", "bitcast", "reshape", "convert", "opt-barrier")


class Frame:
    """One run of a computation; values of its instructions are found when they are asked for.

    Args:
        program: where called computations are looked up.
        computation: what runs.
        arguments: values of the parameters; all unknown if there are none.
    """

    def __init__(self, program: Program, computation: Computation, arguments: Sequence[Value] = ()):
        self.program, self.computation, self.arguments = program, computation, arguments
        self._known: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        if name not in self._known:
            self._known[name] = self._value(self.computation[name])
        return self._known[name]

    @property
    def result(self) -> Value:
        """The value of the root."""
        return self[self.computation.root.name]

    def elements(self, numbers: Collection[int]) -> tuple[Value, ...]:
        """Of the root, a tuple, those of these numbers; the others are taken as unknown."""
        names = self.computation.root.operands
        return tuple(self[name] if i in numbers else None for i, name in enumerate(names))

    def called(self, this: Instruction) -> "Frame":
        """The run of the computation that an instruction calls with its operands."""
        arguments = [self[name] for name in this.operands]
        return Frame(self.program, self.program.named(this, "calls|to_apply"), arguments)

    def branches(self, this: Instruction) -> Iterator["Frame"]:
        """The runs of the branches of a conditional."""
        listed = this.attribute(r"branch_computations=\{([^}]*)\}")
        names = re.findall(r"[\w.\-]+", listed) or re.findall(f"(?:true|false)_computation={NAME}", this.text)
        for name, operand in zip(names, this.operands[1:], strict=True):
            yield Frame(self.program, self.program.computations[name], [self[operand]])

    def rounds(self, loop: Instruction) -> Iterator["Frame"]:
        """The runs of a loop's body, one after the other.

        Raises:
            ValueError: how many there are depends on data.
        """
        condition, body = (self.program.named(loop, name) for name in ("condition", "body"))
        state, noted, followed = self[loop.operands[0]], loop.trip_count, _followed(condition, body)
        for i in itertools.count():
            goes_on = Frame(self.program, condition, [state]).result if noted is None else i < noted
            if goes_on is None or i == _MOST_ROUNDS:
                raise ValueError(
                    f"the number of rounds of {loop.name} depends on data, or is above {_MOST_ROUNDS}."
                )
            if not goes_on:
                return
            run = Frame(self.program, body, [state])
            yield run
            state = run.result if followed is None else run.elements(followed)

    def _value(self, this: Instruction) -> Value:
        opcode, first = this.opcode, this.buffers[0] if len(this.buffers) == 1 else None
        if first and (first.kind not in _KINDS or math.prod(first.shape) > _LARGEST):
            return None
        if opcode == "parameter":
            return self.arguments[this.number] if self.arguments else None
        if opcode == "tuple":
            return tuple(self[name] for name in this.operands)
        if opcode == "get-tuple-element":
            whole = self[this.operands[0]]
            return None if whole is None else whole[this.number]
        if opcode in ("fusion", "call"):
            return self.called(this).result
        if opcode == "while":
            state = self[this.operands[0]]
            for run in self.rounds(this):
                state = run.result
            return state
        if opcode in _RENAMINGS and not first:
            return self[this.operands[0]]
        return _array(this, [self[name] for name in this.operands]) if first else None


def _followed(condition: Computation, body: Computation) -> set[int] | None:
    """Elements of a loop's state that decide how often it runs; None for all, which a loop inside may read."""
    root = body.root
    if root.opcode != "tuple" or any(
        this.opcode in ("while", "call", "conditional") for this in body.values()
    ):
        return None
    found, new = set[int](), _reads(condition, [condition.root.name])
    while new - found:
        found |= new
        new = _reads(body, [root.operands[i] for i in found])
    return found


def _reads(computation: Computation, names: Iterable[str]) -> set[int]:
    """Elements of the parameter that instructions are computed from."""
    found, waiting, seen = set[int](), list(names), set[str]()
    while waiting:
        this = computation[waiting.pop()]
        if this.opcode == "get-tuple-element" and computation[this.operands[0]].opcode == "parameter":
            found.add(this.number)
        elif this.name not in seen:
            seen.add(this.name)
            waiting += this.operands
    return found


def _array(this: Instruction, operands: list[Value]) -> Value:
    """The value of an instruction whose result is one array."""
    if any(operand is None for operand in operands):
        return None
    shape, dtype = this.buffers[0].shape, np.dtype(_KINDS[this.buffers[0].kind])
    opcode, value = this.opcode, None
    if opcode in ("divide", "remainder") and not operands[1].all():
        return None
    if opcode in _ELEMENTWISE:
        value = _ELEMENTWISE[opcode](*operands)
    elif opcode == "constant":
        numbers = re.findall(r"-?\d+|true|false", this.text.partition(")")[0])
        if len(numbers) == math.prod(shape):  # long arrays are not written out
            value = [number == "true" if number.isalpha() else int(number) for number in numbers]
    elif opcode == "iota":
        axis = int(this.attribute(r"iota_dimension=(\d+)"))
        value = np.broadcast_to(np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - axis - 1)), shape)
    elif opcode == "broadcast":
        axes = [int(axis) for axis in this.attribute(r"dimensions=\{([\d,]*)\}").split(",") if axis]
        sizes = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
        value = np.broadcast_to(operands[0].reshape(sizes), shape)
    elif opcode == "slice":
        bounds = [
            map(int, axis.split(":"))
            for axis in re.findall(r"\[([\d:]+)\]", this.attribute(r"slice=\{(.*?)\}"))
        ]
        value = operands[0][tuple(slice(*axis) for axis in bounds)]
    elif opcode == "dynamic-slice":
        whole, *starts = operands
        corner = [np.clip(i, 0, n - size) for i, n, size in zip(starts, whole.shape, shape, strict=True)]
        value = whole[tuple(slice(i, i + size) for i, size in zip(corner, shape, strict=True))]
    elif opcode == "compare":
        value = getattr(operator, this.attribute(r"direction=(\w+)").lower())(*operands)
    elif (
        opcode in _RENAMINGS
        and operands[0].size == math.prod(shape)
        and max(operands[0].shape, default=1) == operands[0].size
    ):
        value = operands[0]  # of one axis, so that layouts do not matter
    return None if value is None else np.asarray(value).astype(dtype).reshape(shape)
